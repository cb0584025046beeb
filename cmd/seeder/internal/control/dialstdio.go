//go:build linux

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
)

// DialStdio is `seeder dial-stdio`, the far end of `seeder push`. It is hidden: people
// name it in a line of sudoers, and never type it.
func DialStdio(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dial-stdio",
		Short: "Connect standard input and output to the daemon's control socket",
		Long: `Connect standard input and output to the daemon's control socket. ` + "`seeder push`" + ` runs
this on the host, through ssh. It ends when the daemon closes the connection.`,
		Example: "  ssh me@host sudo -n seeder dial-stdio",
		Hidden:  true,
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	Flags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := NewClient(env)
		if err != nil {
			return err
		}
		conn, err := new(net.Dialer).DialContext(cmd.Context(), "unix", c.Socket)
		if err != nil {
			return c.explain(cmd.Context(), err)
		}
		return join(cmd.Context(), conn.(*net.UnixConn), env.Stdin, env.Stdout)
	}
	return cmd
}

// join copies in to conn, and conn to out until conn ends, which it closes. The end of in
// closes that half of conn alone: the answer is still to come. A read of in that does not
// return is left to the end of the process.
func join(ctx context.Context, conn *net.UnixConn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, in) // an error of conn is that of the other half, too
		_ = conn.CloseWrite()
	}()
	_, err := io.Copy(out, conn)
	if f, ok := out.(*os.File); ok {
		err = errors.Join(err, ignoreClosed(f.Close())) // its reader sees the end now
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil // of the other end, which has what it wanted
	case err != nil:
		return fmt.Errorf("copy between the daemon's socket and standard output: %w", err)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
