//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/show"
	"seeder/cmd/seeder/internal/term"
)

// announcing are the flags of `seeder announce`.
type announcing struct {
	from     string
	on       []string
	yes      bool
	rollback bool
	detach   bool
	all      *bool
	any      bool // platform
	whole    bool // no deltas
	timeout  time.Duration
}

// announceHelp is the help of `seeder announce`.
const announceHelp = `Announce images to the cluster and wait until they are ready on every alive node that
should hold them. Ctrl-C stops the waiting, not the seeding. Nodes that are down are listed
at the end and not waited for, except with --all.

SOURCE is where the image is:
  containerd      this host's containerd
  docker, podman  this host's Docker or Podman, by its API socket
  FILE or -       a docker-archive or OCI-layout tar, plain or compressed with gzip,
                  zstd, bzip2 or lz4; - reads it from standard input. Without REF
                  all images in it are announced
  DIR             an OCI layout
  auto            containerd; Docker or Podman if containerd does not have the image,
                  or if their build is newer
An image that is not in containerd is imported into it first. Of an archive, images
without a valid name, charts, signatures and other artifacts are left out and listed.
Several REFs are announced by one command if containerd has them all; else none is.
If one of them fails after that, it says which are announced, and does not wait for them.

Announcing a new build under the same REF moves every node to it. REF@sha256:DIGEST
announces a build that this host still has. --rollback announces the build that this host
had before the announced one, so a second --rollback undoes the first.
images.keep_previous sets how many builds are kept.

At the end pods are listed that wait for an image, with what makes them start, if a
kubeconfig is found (KUBECONFIG, those of k3s and rke2, ~/.kube/config). Nothing is
written to the API.

Each node fetches what its platform needs. This host need not run the image itself.
Of an index, each node takes the image for its platform. An image with a single manifest
goes to the nodes of its platform. If its config names another platform than this host's,
or none, it goes to every node, because containerd runs it whatever the config says.
--any-platform asks for the same if the config names the wrong platform. If no node takes
the image, the exit code is 3.

--on selects nodes by the labels in their configuration (key ` + "`labels`" + `). All
selectors must match. Other nodes do not fetch the image; a node that has it already no
longer protects it from the kubelet's garbage collection. images.follow, --rollback and
REF@sha256:DIGEST keep the selectors of the announcement before, unless --on is given;
announcing REF without --on is for every node.

With -o json, the output is one object per line: source (where the image comes from, and
why), sending, preparing, announced (ref, digest, version), progress and ready (with
"image", a row of ` + "`seeder images -o json`" + `; ready also has "saved", what the nodes
measured), pods (those that wait for an image, with detail and fix), and at the end done
or error.`

func announceCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "announce [REF...] [--from SOURCE] [--on KEY=VALUE]",
		Short: "Distribute images from this host to all nodes",
		Long:  announceHelp,
		Example: `  seeder announce k3s-dashboard:latest
  seeder announce app:v1 worker:v1 web:v1
  seeder announce --from k3s-dashboard.tar
  docker save app:v1 app:v2 | seeder announce --from -
  seeder announce app:v1 --on zone=a --on role!=gpu
  seeder announce --rollback app:latest
  seeder announce app:v1 --timeout 2m -o json`,
		Args: cli.ArgCount(0, -1, "references"),
	}
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	var flags announcing
	cmd.Flags().StringVar(&flags.from, "from", engines.FromAuto, "`source` of the image: auto, containerd, docker, podman, a FILE, a DIR, or - for standard input")
	cmd.Flags().StringArrayVar(&flags.on, "on", nil, "only for nodes with this label: `key=value` or key!=value; repeat it for more conditions")
	cmd.Flags().BoolVarP(&flags.yes, "yes", "y", false, "announce even if --on matches no alive node")
	cmd.Flags().BoolVar(&flags.any, "any-platform", false, "for nodes of every platform, even if the image names one platform")
	cmd.Flags().BoolVar(&flags.whole, "no-delta", false, "this node sends layers whole, even where a delta would be sooner, until it is restarted or the image is announced again")
	cmd.Flags().BoolVar(&flags.rollback, "rollback", false, "announce the previous version again")
	cmd.Flags().BoolVar(&flags.detach, "detach", false, "return when the image is announced, without waiting for the nodes")
	cli.TimeoutVar(cmd.Flags(), &flags.timeout, "timeout", defaultWait, "give up waiting after this `time`; 0: never")
	cmd.ValidArgsFunction = completeRefs(env, localRefs, 0)
	cli.CompleteWords(cmd, "from", true, engines.FromAuto, engines.FromContainerd, engines.FromDocker, engines.FromPodman, engines.FromStdin)
	cli.CompleteWords(cmd, "on", false)
	flags.all = allFlag(cmd)
	cli.CompleteWords(cmd, "timeout", false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		images, err := flags.images(args)
		if err != nil {
			return err
		}
		c, err := control.NewClient(env)
		if err != nil {
			return err
		}
		f := show.NewFollower(env, *out, flags.timeout)
		f.Announcing = true
		say := func() {}
		if !flags.detach {
			say = tellPods(cmd.Context(), env, c, f, *out == "json")
		}
		if err = announceImages(cmd.Context(), env, c, f, images, flags); err == nil {
			say()
		}
		return err
	}
	return cmd
}

// images are what the arguments name, where they do not contradict the flags: one without
// a name where there are none.
func (f *announcing) images(args []string) ([]cli.Typed, error) {
	if len(args) == 0 {
		args = []string{""}
	}
	var out []cli.Typed
	var refs []string
	for _, arg := range args {
		t, err := f.image(arg)
		if err == nil && len(args) > 1 {
			err = f.amongSeveral(t)
		}
		if err != nil {
			return nil, err
		}
		out, refs = append(out, t), append(refs, t.Ref)
	}
	return out, control.CheckSeveral(refs)
}

// amongSeveral is an error where t can only be announced alone.
func (f *announcing) amongSeveral(t cli.Typed) error {
	switch f.from {
	case engines.FromDocker, engines.FromPodman:
		return cli.Usagef("several images of %[1]s go as one archive: %[1]s save REF... | seeder announce --from -", f.from)
	case engines.FromAuto, engines.FromContainerd:
		if t.At != "" {
			return cli.Usagef("%s names a build, which is announced alone", t.Text)
		}
		return nil
	}
	return cli.Usagef("--from %s takes at most one reference; without one all images in it are announced", f.from)
}

// image is what an argument names, where that does not contradict the flags.
func (f *announcing) image(arg string) (cli.Typed, error) {
	var t cli.Typed
	if arg != "" {
		var err error
		if t, err = cli.ParseTyped(arg); err != nil {
			if info, statErr := os.Stat(arg); statErr == nil && (info.Mode().IsRegular() || engines.IsLayout(arg)) {
				return t, cli.Usagef("%[1]s is a file: seeder announce --from %[1]s", arg)
			}
			return t, err
		}
	}
	inContainerd := f.from == engines.FromAuto || f.from == engines.FromContainerd
	switch {
	case f.rollback && t.Ref == "":
		return t, cli.Usagef("which image? seeder announce --rollback REF")
	case f.rollback && t.At != "":
		return t, cli.Usagef("--rollback finds the version before by itself; leave out either it or @%s", t.At)
	case f.rollback && !inContainerd:
		return t, cli.Usagef("--rollback announces what containerd has kept; leave out --from %s", f.from)
	case t.At != "" && !inContainerd:
		return t, cli.Usagef("%s names a build that containerd has; leave out --from %s", t.Text, f.from)
	case t.Ref == "" && (inContainerd || f.from == engines.FromDocker || f.from == engines.FromPodman):
		return t, cli.Usagef("which image? seeder announce REF, or seeder announce --from FILE")
	}
	return t, nil
}

func announceImages(ctx context.Context, env *cli.Env, c *control.Client, f *show.Follower, images []cli.Typed, flags announcing) error {
	none, err := checkOn(ctx, env, c, flags)
	if err != nil {
		return err
	}
	image := images[0]
	src, err := findOrigins(ctx, env, c, images, flags)
	if err != nil {
		return err
	}
	query := url.Values{"wait": {strconv.FormatBool(!flags.detach)}, "archive": {strconv.FormatBool(src.Archive != nil)}, "on": flags.on, "all": {strconv.FormatBool(*flags.all)}}
	if flags.any {
		query.Set("any_platform", "true")
	}
	if flags.whole {
		query.Set("no_delta", "true")
	}
	if none != "" { // nobody to wait for
		query.Set("wait", "false")
		f.Event(control.Event{Event: control.EventSource, Time: time.Now().UTC(), Ref: image.Ref, Reason: none + "; it is announced for nodes that get the labels later"})
	}
	for _, t := range images {
		if t.Ref != "" {
			query.Add("ref", t.Ref)
		}
	}
	if len(images) > 1 {
		f.Several = query["ref"]
	}
	if image.At != "" {
		query.Set("digest", image.At.String())
	}
	if flags.rollback {
		query.Set("rollback", "true")
	}
	if src.Why != "" {
		f.Event(control.Event{Event: control.EventSource, Time: time.Now().UTC(), Ref: image.Ref, Source: src.Name, Reason: src.Why})
	}
	var body io.Reader
	if src.Archive != nil {
		defer src.Archive.Close()
		body = &countingReader{r: src.Archive, total: src.Bytes, report: f.Event}
	}
	return f.Follow(ctx, c, http.MethodPost, "/v1/announce", query, body)
}

// checkOn asks before an image is announced to nobody, and says why it is nobody.
func checkOn(ctx context.Context, env *cli.Env, c *control.Client, flags announcing) (none string, err error) {
	if len(flags.on) == 0 {
		return "", nil
	}
	var s control.Selected
	if err := c.Get(ctx, "/v1/selected", url.Values{"on": flags.on}, &s); err != nil {
		return "", err
	}
	if s.None == "" || flags.yes {
		return s.None, nil
	}
	const fix = "--yes announces it anyway, for nodes that get the labels later"
	if flags.from == engines.FromStdin || !term.IsTerminal(env.Stdin) || !term.IsTerminal(env.Stdout) {
		return "", cli.Usagef("%s; %s", s.None, fix)
	}
	fmt.Fprintf(env.Stdout, "%s.\nAnnounce it anyway, for nodes that get the labels later? [y/N] ", term.Clean(s.None))
	answer, err := bufio.NewReader(io.LimitReader(env.Stdin, 100)).ReadString('\n')
	if err != nil || !strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "y") {
		return "", cli.Usagef("not announced; %s", fix)
	}
	return s.None, nil
}

const reportInterval = 500 * time.Millisecond

type countingReader struct {
	r           io.Reader
	done, total int64 // bytes
	last        time.Time
	report      func(control.Event)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if now := time.Now(); now.Sub(c.last) >= reportInterval || (n > 0 && c.done == c.total) {
		c.last = now
		c.report(control.Event{Event: control.EventSending, Time: now.UTC(), DoneBytes: c.done, TotalBytes: c.total})
	}
	return n, err
}
