//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// purgeWait is how long a purge is watched before the command says who is left.
const purgeWait = 10 * time.Second

func withdrawCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "withdraw REF",
		Short: "Stop seeding an image",
		Long: `Stop seeding an image. Nodes that do not have it no longer fetch it. Nodes that have it
keep it, but no longer protect it from the kubelet's garbage collection.

With --purge all nodes remove the image; nodes that are down remove it when they are
back. While a container uses the image on a node, that node keeps it, and
` + "`seeder images REF`" + ` says so; with --force it is removed there, too. The command
returns when all alive nodes have removed it, or after ten seconds with a list of the
nodes that have not.`,
		Example: "  seeder withdraw k3s-dashboard:latest\n  seeder withdraw --purge k3s-dashboard:latest",
		Args:    cli.ArgCount(1, 1, "one reference"),
	}
	control.Flags(env, cmd)
	var how report.Withdrawal
	cmd.Flags().BoolVar(&how.Purge, "purge", false, "also remove the image from all nodes")
	cmd.Flags().BoolVar(&how.Force, "force", false, "with --purge: remove it even while a container uses it")
	cmd.ValidArgsFunction = completeRefs(env, announcedRefs, 1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t, err := cli.ParseTyped(args[0])
		if err != nil {
			return err
		}
		if t.At != "" && !strings.Contains(t.Ref, "@") {
			return cli.Usagef("%s: a reference is withdrawn whatever it stands for; leave out @%s", t.Text, t.At)
		}
		if how.Force && !how.Purge {
			return cli.Usagef("--force is for --purge: without it nothing is removed")
		}
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		query := url.Values{"ref": {t.Ref}, "purge": {strconv.FormatBool(how.Purge)}, "force": {strconv.FormatBool(how.Force)}}
		if err := c.Post(cmd.Context(), "/v1/withdraw", query, nil); err != nil {
			return err
		}
		if !how.Purge {
			_, err = fmt.Fprintf(env.Stdout, "%s: withdrawn; the nodes that have it keep it\n", cli.ShortRef(t.Ref))
			return err
		}
		return showPurge(cmd.Context(), env, c, t.Ref)
	}
	return cmd
}

// showPurge waits for a purge and says who has not removed the image.
func showPurge(ctx context.Context, env *cli.Env, c *control.Client, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, purgeWait)
	defer cancel()
	var row report.ImageState
	for {
		var images report.Images
		err := c.Get(ctx, "/v1/images", url.Values{"ref": {ref}}, &images)
		if err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(images.Images) == 1 {
			if row = images.Images[0]; row.State == "withdrawn" && len(keepers(row)) == 0 {
				break
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
			continue
		}
		break
	}
	left, absent := keepers(row), ""
	if slices.ContainsFunc(left, func(n report.NodeState) bool { return n.State == report.Unreachable }) {
		absent = "; those that do not answer remove it once they are back"
	}
	var freed int64
	for _, n := range row.Nodes {
		freed = control.AddBytes(freed, n.FreedBytes)
	}
	if freed > 0 {
		absent = ", " + term.Bytes(freed) + " of blobs and frames freed" + absent
	}
	if _, err := fmt.Fprintf(env.Stdout, "%s: withdrawn and removed on %d of %d nodes%s\n",
		cli.ShortRef(ref), len(row.Nodes)-len(left), len(row.Nodes), absent); err != nil {
		return err
	}
	for _, n := range left {
		if _, err := fmt.Fprintf(env.Stdout, "  %s: %s\n", term.Clean(n.Name), term.Clean(n.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// keepers are the nodes that have not removed a purged image.
func keepers(row report.ImageState) []report.NodeState {
	var out []report.NodeState
	for _, n := range row.Nodes {
		if n.State != report.Excluded {
			out = append(out, n)
		}
	}
	return out
}
