package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var unknownFlag = regexp.MustCompile(`^unknown flag: --([^ =]+)`)

// BadFlag is the error of a flag that cannot be read; of one that is not known it names
// the nearest.
func BadFlag(cmd *cobra.Command, err error) error {
	near := ""
	if m := unknownFlag.FindStringSubmatch(err.Error()); m != nil {
		// The measure by which commands are suggested, for flags.
		names := &cobra.Command{SuggestionsMinimumDistance: 2}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
			}
		})
		if found := names.SuggestionsFor(m[1]); len(found) > 0 {
			near = "; did you mean --" + strings.Join(found, " or --") + "?"
		}
	}
	return Usagef("%w%s; see `%s --help`", err, near, cmd.CommandPath())
}

// timeout is the value of a flag: a duration that is not negative.
type timeout time.Duration

// String is part of pflag.Value.
func (t *timeout) String() string { return time.Duration(*t).String() }

// Type is part of pflag.Value.
func (t *timeout) Type() string { return "duration" }

// Set is part of pflag.Value.
func (t *timeout) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil && isNumber(s):
		return fmt.Errorf("%s of what? write %ss or %sm", s, s, s)
	case err != nil:
		return fmt.Errorf("want a duration, e.g. 90s or 5m")
	case d < 0:
		return errors.New("a duration cannot be negative; 0 means no limit")
	}
	*t = timeout(d)
	return nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseFloat(strings.TrimPrefix(s, "-"), 64)
	return err == nil
}

// TimeoutVar adds a flag that takes a time, which p is from then on.
func TimeoutVar(flags *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	flags.Var((*timeout)(p), name, usage)
}

// HelpCommand is `seeder help`, which knows what it knows nothing of.
func HelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Help about a command",
		Example:           "  seeder help announce",
		ValidArgsFunction: completeCommands,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 && found.HasSubCommands() {
				if len(rest) == 0 {
					found, rest = cmd.Root(), args
				}
				return NoSuchCommand(found, rest)
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

func completeCommands(cmd *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
	found, _, err := cmd.Root().Find(args)
	if err == nil {
		for _, c := range found.Commands() {
			if c.IsAvailableCommand() {
				out = append(out, c.Name()+"\t"+c.Short)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
