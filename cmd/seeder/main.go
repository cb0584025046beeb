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
// and whatever fails is said on standard error with its name, value and fix.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/text"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second signal ends the process at once: the first one may hang on a
	// part that does not close.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &cli.Env{Stdin: stdin, Stdout: stdout, Stderr: stderr, LookupEnv: os.LookupEnv, Environ: os.Environ}
	root := rootCommand(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return cli.ExitDone
	}
	if msg := err.Error(); msg != "" {
		// The texts of archives, engines and other nodes are part of errors.
		fmt.Fprintln(stderr, "seeder: "+text.Lines(msg, maxErrorLine))
	}
	return cli.ExitCode(err)
}

// maxErrorLine bounds a line of an error, in bytes.
const maxErrorLine = 16 << 10

func rootCommand(env *cli.Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "seeder",
		Short: "Distribute container images across a k3s cluster without a registry",
		Long: `seeder distributes a container image from one host to all hosts of a cluster, without
a registry. Announce the image on one host: the seeder daemons of all hosts fetch it
from each other and import it into their containerd.

Exit codes: 0 success, 1 failure, 2 invalid usage or configuration, 3 not ready within
the timeout, 4 the daemon cannot be reached.`,
		Example:       examples,
		Version:       thisVersion().String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cli.NoSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return cli.BadFlag(cmd, err)
	})
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetHelpCommand(cli.HelpCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(commands(env)...)
	completeNoFiles(root)
	return root
}
