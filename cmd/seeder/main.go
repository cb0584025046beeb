// Command seeder is the daemon of a node and the commands that talk to it.
//
// It owns the wiring: configuration becomes a running node here, and here alone
// do the parts that know peers (p2p) and the parts that know this host's images
// (store) meet. Commands other than daemon, config, secret, version and demo
// only speak to the daemon, through the control API on a unix socket.
//
// It never decides anything about an image or a peer itself, and it never exits
// other than through the return value of run.
//
// Words: a control request is what a command asks of the daemon; an event is one
// line of what the daemon answers while it works; the matrix is the node × image
// table that `images` prints.
//
// Invariant: the exit code of every command is one of the five documented ones,
// and whatever fails is said on standard error with its name, value and mend.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes of every command.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2 // wrong usage or bad configuration
	exitNotConverged = 3 // not converged within the timeout
	exitNoDaemon     = 4 // the daemon is not reachable
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second signal ends the process at once: the first one may hang on a
	// part that does not close.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what every command has in common: the streams and the environment of
// the process, and the flags that all of them take.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)
	environ        func() []string

	configFile string // --config
	socket     string // --socket
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, lookupEnv: os.LookupEnv, environ: os.Environ}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(stderr, "seeder: "+msg)
	}
	return exitCodeOf(err)
}

func exitCodeOf(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &coded):
		return coded.code
	}
	return exitFailed
}

// codedError is an error that asks for an exit code other than exitFailed.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &codedError{code: code, err: err}
}

// usagef is an error of the caller: exit code 2.
func usagef(format string, args ...any) error {
	return withCode(exitUsage, fmt.Errorf(format, args...))
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "seeder",
		Short: "Brings an image that one host has to every host of the cluster",
		Long: `seeder makes a container image that one host has available on every host of a
cluster, without a registry: announce it on one, and the seeder daemons of all
hosts fetch it from each other and import it into their containerd.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad configuration, 3 not
converged within the timeout, 4 the daemon is not reachable.`,
		Example: `  seeder demo                           # see it work on this machine alone
  seeder announce k3s-dashboard:latest  # on the host that has the image
  seeder images                         # which node has what`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see `%s --help`", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		a.daemonCommand(), a.announceCommand(), a.withdrawCommand(), a.imagesCommand(),
		a.statusCommand(), a.membersCommand(), a.waitCommand(), a.doctorCommand(), a.reloadCommand(), a.secretCommand(),
		a.configCommand(), a.demoCommand(), a.versionCommand(), a.completionCommand(),
	)
	completeNoFiles(root)
	return root
}

// noSuchCommand is the Args of a command that only groups others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s; see `%s --help`", msg, cmd.CommandPath())
}

// needSubcommand is the RunE of a command that only groups others.
func needSubcommand(cmd *cobra.Command, _ []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usagef("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
}

// argCount is an Args that takes from least to most arguments (most < 0: any
// number) and says what the command wants.
func argCount(least, most int, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return usagef("%s takes %s, not %d arguments; see `%s --help`", cmd.CommandPath(), want, len(args), cmd.CommandPath())
	}
}

// clientFlags adds the flags of the commands that talk to the daemon.
func (a *app) clientFlags(cmd *cobra.Command) {
	a.configFlag(cmd)
	cmd.Flags().StringVar(&a.socket, "socket", "", "the daemon's control `socket` (default: api.socket of the configuration)")
}

func (a *app) configFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.configFile, "config", "", "configuration `file` (default "+defaultConfigFile+", which need not exist)")
}

// output is the value of -o.
type output string

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "format" }
func (o *output) Set(s string) error {
	if s != "text" && s != "json" {
		return fmt.Errorf("%q is not an output format: text or json", s)
	}
	*o = output(s)
	return nil
}

func outputFlag(cmd *cobra.Command) *output {
	o := output("text")
	cmd.Flags().VarP(&o, "output", "o", "text or json")
	completeWords(cmd, "output", false, "text", "json")
	return &o
}
