// Package push is `seeder push`: an image of this machine gets to all hosts of a cluster
// through one of them, which is reached by ssh alone.
//
// It owns where the image is looked for, the connection through ssh, and what crosses it. It
// never asks for a secret of the cluster, and needs no daemon here: it is all of seeder that
// runs on macOS and Windows.
//
// Invariant: a blob that the host's containerd has does not cross the connection; when the
// command ends, no process of ssh and no file of it is left.
package push

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
	"seeder/store/archive"
)

// flags are those of `seeder push`.
type flags struct {
	from     string
	ssh      string
	sudo     bool
	seeder   string
	on       []string
	yes, any bool
	detach   bool
	all      bool
	timeout  time.Duration
	out      *cli.Output
}

const help = `Push images of this machine to a cluster, through one of its hosts, and wait until they
are ready on every alive node that should hold them. Nothing but ssh is needed: no open
port, no credentials, no registry. The host's daemon says which layers it is missing. Only
those are sent, compressed. It then announces the images, as seeder announce does there.

On the host, ssh runs ` + "`sudo -n seeder dial-stdio`" + `. A user who has no root login needs to be
allowed this one command, without a password:

  echo 'USER ALL=(root) NOPASSWD: /usr/bin/seeder dial-stdio' > /etc/sudoers.d/seeder-push

For root@HOST, sudo is left out. SEEDER_SSH, or --ssh, is the ssh program and its options.

IMAGE is the name of an image in this machine's Docker or Podman, or an archive: a
docker-archive or OCI-layout tar, plain or compressed, or the directory of an OCI layout.
All images in an archive are pushed; with --from FILE, those that IMAGE names. The image
is first copied to the directory for temporary files (TMPDIR). A file that
` + "`seeder export --since`" + ` wrote is sent as it is, and the host rebuilds its layers.

Ctrl-C ends the push, and nothing is announced. Once the images are announced it ends the
waiting alone. What an unfinished push has sent is kept for at least a quarter of an
hour, for another try, and then removed.

With -o json, the output is one object per line, as that of seeder announce.`

// Command is `seeder push`.
func Command(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push [USER@]HOST IMAGE...",
		Short: "Push images of this machine to a cluster, through ssh",
		Long:  help,
		Example: `  seeder push me@node1 k3s-dashboard:latest
  seeder push root@10.0.0.1 app.tar
  docker save app:v1 | seeder push node1 --from -
  SEEDER_SSH='ssh -p 2222 -J bastion' seeder push me@node1 app:v1 db:v3`,
		Args: cli.ArgCount(1, -1, "a host and the images"),
	}
	var f flags
	f.out = cli.OutputFlag(cmd)
	cmd.Flags().StringVar(&f.from, "from", engines.FromAuto, "`source` of the images: auto, docker, podman, a FILE, a DIR, or - for standard input")
	cmd.Flags().StringVar(&f.ssh, "ssh", "", "the ssh `command` with its options (default: SEEDER_SSH, or ssh)")
	cmd.Flags().BoolVar(&f.sudo, "sudo", true, "run seeder by sudo on the host; root@HOST has none")
	cmd.Flags().StringVar(&f.seeder, "seeder", "seeder", "the `program` on the host, with options if need be")
	cmd.Flags().StringArrayVar(&f.on, "on", nil, "only for nodes with this label: `key=value` or key!=value; repeat it for more conditions")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "announce even if --on matches no alive node")
	cmd.Flags().BoolVar(&f.any, "any-platform", false, "for nodes of every platform, even if the image names one platform")
	cmd.Flags().BoolVar(&f.detach, "detach", false, "return when the images are announced, without waiting for the nodes")
	cmd.Flags().BoolVar(&f.all, "all", false, "also wait for nodes that are down")
	cli.TimeoutVar(cmd.Flags(), &f.timeout, "timeout", 10*time.Minute, "give up waiting for the nodes after this `time`; 0: never")
	cli.CompleteWords(cmd, "from", true, engines.FromAuto, engines.FromDocker, engines.FromPodman, engines.FromStdin)
	for _, name := range []string{"ssh", "seeder", "on", "timeout"} {
		cli.CompleteWords(cmd, name, false)
	}
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveDefault // archives
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.sudo = f.sudo && (cmd.Flags().Changed("sudo") || !strings.HasPrefix(args[0], "root@"))
		return f.run(cmd.Context(), env, args[0], args[1:])
	}
	return cmd
}

// way is how the flags and the environment want the host to be reached.
func (f *flags) way(env *cli.Env, host string) (way, error) {
	command := f.ssh
	if command == "" {
		command, _ = env.LookupEnv("SEEDER_SSH")
	}
	if command == "" {
		command = "ssh"
	}
	program, err := fields(command)
	if err != nil {
		return way{}, err
	}
	if host == "" || strings.HasPrefix(host, "-") || strings.ContainsAny(host, " \t\n") {
		return way{}, cli.Usagef("invalid host %q: want [user@]host, or a Host of ssh's configuration", host)
	}
	return way{ssh: program, host: host, sudo: f.sudo, seeder: f.seeder}, nil
}

func (f *flags) run(ctx context.Context, env *cli.Env, host string, images []string) (err error) {
	w, err := f.way(env, host)
	if err != nil {
		return err
	}
	sources, err := f.sources(env, images)
	if err != nil {
		return err
	}
	env, changes, err := f.deltaArchive(env, sources)
	if err != nil {
		return err
	}
	if changes != nil {
		defer changes.Close()
	}
	t, err := open(ctx, w)
	if err != nil {
		return err
	}
	c := control.DialThrough(host, t.dial, t.lost)
	defer func() {
		c.Close()
		t.close()
	}()
	if err := c.Get(ctx, "/v1/ping", nil, &struct{}{}); err != nil {
		return err
	}
	if err := mayPush(ctx, c); err != nil {
		return fmt.Errorf("on %s: %w", host, err)
	}
	if err := f.checkOn(ctx, c); err != nil {
		return err
	}
	follower := show.NewFollower(env, *f.out, f.timeout)
	follower.Announcing = true
	if changes != nil {
		return f.pass(ctx, c, follower, changes, sources[0].ref)
	}
	dir, err := os.MkdirTemp("", "seeder-push-")
	if err != nil {
		return fmt.Errorf("make a directory for the images: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	found, err := f.upload(ctx, env, t, c, follower, dir, sources)
	if err != nil {
		if ctx.Err() != nil {
			err = cli.WithCode(cli.ExitNotConverged, errors.New("the push was ended; nothing is announced"))
		}
		return follower.Fail(err)
	}
	query := f.query()
	query["pushed"] = pushed(found)
	return follower.Follow(ctx, c, http.MethodPost, "/v1/announce", query, nil)
}

// pushed are images as an announcement names them.
func pushed(images []archive.Image) (out []string) {
	for _, img := range images {
		out = append(out, img.Reference+"@"+img.Target.Digest.String())
	}
	return out
}

// checkOn refuses to announce images to nobody.
func (f *flags) checkOn(ctx context.Context, c *control.Client) error {
	if len(f.on) == 0 || f.yes {
		return nil
	}
	var s struct {
		None string `json:"none"`
	}
	if err := c.Get(ctx, "/v1/selected", url.Values{"on": f.on}, &s); err != nil {
		return err
	}
	if s.None != "" {
		return cli.Usagef("%s; --yes pushes the images anyway, for nodes that get the labels later", s.None)
	}
	return nil
}

// upload reads the images into dir and sends what the daemon is missing of them.
func (f *flags) upload(ctx context.Context, env *cli.Env, t *tunnel, c *control.Client, follower *show.Follower, dir string, sources []source) ([]archive.Image, error) {
	tell := func(ref, name, why string) {
		follower.Event(control.Event{Event: control.EventSource, Time: time.Now().UTC(), Ref: ref, Source: name, Reason: why})
	}
	_ = log.SetLevel("error") // containerd's content store says to standard error what the directory's file system cannot do
	blobs, err := archive.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	var images []archive.Image
	for _, s := range sources {
		o, err := s.open(ctx, env)
		if err != nil {
			return nil, err
		}
		found, leftOut, err := blobs.Read(ctx, o.Archive, s.ref)
		if err = errors.Join(err, o.Archive.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name(), err)
		}
		if len(leftOut) > 0 {
			tell("", "archive", "left out of the archive: "+strings.Join(leftOut, "; "))
		}
		images = append(images, found...)
	}
	if err := control.CheckPushed(pushed(images)); err != nil {
		return nil, err
	}
	u := &upload{client: c, dir: blobs, report: follower.Event}
	n, err := u.send(ctx, images)
	if err != nil {
		return nil, err
	}
	tell("", "", fmt.Sprintf("sent %d of %s, %s of %s, as %s through ssh to %s",
		n.missing, term.Plural(n.blobs, "blob"), term.Bytes(n.missingSize), term.Bytes(n.bytes), term.Bytes(t.sent.Load()), t.way.host))
	return images, nil
}
