package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// NoSuchCommand is the Args of a command that only groups others.
func NoSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return Usagef("%s; see `%s --help`", msg, cmd.CommandPath())
}

// NeedSubcommand is the RunE of a command that only groups others.
func NeedSubcommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return Usagef("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
}

// ArgCount is an Args that takes from least to most arguments (most < 0: any
// number) and says what the command wants.
func ArgCount(least, most int, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return Usagef("%s takes %s; got %q; see `%s --help`", cmd.CommandPath(), want, args, cmd.CommandPath())
	}
}
