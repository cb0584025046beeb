package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Output is the value of -o.
type Output string

// String is part of pflag.Value.
func (o *Output) String() string { return string(*o) }

// Type is part of pflag.Value.
func (o *Output) Type() string { return "format" }

// Set is part of pflag.Value.
func (o *Output) Set(s string) error {
	if s != "text" && s != "json" {
		return fmt.Errorf("invalid output format %q: want text or json", s)
	}
	*o = Output(s)
	return nil
}

// OutputFlag adds -o, --output to cmd.
func OutputFlag(cmd *cobra.Command) *Output {
	o := Output("text")
	cmd.Flags().VarP(&o, "output", "o", "text or json")
	CompleteWords(cmd, "output", false, "text", "json")
	return &o
}

// PrintJSON writes one indented document.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
