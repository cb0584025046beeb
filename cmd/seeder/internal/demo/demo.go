// Package demo is `seeder demo`: several nodes on this machine, one of which announces an
// image that all the others get.
//
// It owns the processes and the directory of the demonstration. It never touches a
// containerd, and binds to loopback addresses alone.
//
// Invariant: whatever it started has ended, and its directory is gone, when it returns.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
	"seeder/p2p/trust"
)

const (
	minDemoNodes = 2
	maxDemoNodes = 16

	demoStartTimeout    = 30 * time.Second
	demoAnnounceTimeout = 90 * time.Second
)

// Command is `seeder demo`.
func Command(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try seeder on this machine, without containerd or root",
		Long: `Start several nodes on loopback addresses of this machine, each with its own image
store, announce an image on the first, and show how the others fetch it. The image is
built from files of this machine, or read from the archive that --image names. All data
is in one temporary directory, which is removed at the end.`,
		Example: "  seeder demo\n  seeder demo --keep\n  seeder demo --nodes 8\n  seeder demo --image k3s-dashboard.tar",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	nodes := cmd.Flags().Int("nodes", 4, "`number` of nodes")
	keep := cmd.Flags().Bool("keep", false, "keep the nodes running until Ctrl-C, to open the status page and try commands")
	image := cmd.Flags().String("image", "", "archive `file` with one image (default: built from files of this machine)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *nodes < minDemoNodes || *nodes > maxDemoNodes {
			return cli.Usagef("--nodes %d: want %d to %d", *nodes, minDemoNodes, maxDemoNodes)
		}
		if *image != "" {
			if err := readableFile(*image); err != nil {
				return cli.Usagef("--image %s: want an archive file: %w", *image, err)
			}
		}
		return runDemo(cmd.Context(), env, demoOptions{nodes: *nodes, image: *image, keep: *keep})
	}
	return cmd
}

// readableFile is an error where path is no file with something in it.
func readableFile(path string) error {
	info, err := os.Stat(path)
	var pathErr *os.PathError
	switch {
	case errors.As(err, &pathErr):
		return pathErr.Err
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("not a file")
	case info.Size() == 0:
		return errors.New("the file is empty")
	}
	return nil
}

// demoOptions are the flags of the demo.
type demoOptions struct {
	nodes int
	image string // an archive; empty: one is packed
	keep  bool   // until ctx ends
}

// demo runs the whole demonstration and leaves nothing behind.
func runDemo(ctx context.Context, env *cli.Env, o demoOptions) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program for the nodes: %w", err)
	}
	dir, err := os.MkdirTemp("", "seeder-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	d := &demo{Env: env, exe: exe, dir: dir, start: time.Now()}
	defer func() {
		d.stop()
		if err != nil {
			err = d.explain(ctx, err)
		}
		if rm := os.RemoveAll(dir); rm != nil {
			err = errors.Join(err, fmt.Errorf("remove the demo's directory: %w", rm))
		}
		if err == nil {
			d.say("\nDone in %.1f s; the demo's nodes and files are removed.", time.Since(d.start).Seconds())
		}
	}()
	if err := d.startNodes(ctx, o.nodes); err != nil {
		return err
	}
	d.say("\n%d nodes are up and know each other.", o.nodes)
	image := o.image
	if image == "" {
		if image, err = d.packImage(ctx); err != nil {
			return err
		}
	}
	if err := d.announce(ctx, image); err != nil {
		return err
	}
	if !o.keep {
		d.say("\nTo see the status page: seeder demo --keep")
		return nil
	}
	first := d.nodes[0]
	d.say("\nThe status page:  http://%s/\nCommands, as on a host of a cluster:  seeder status --socket %s\nCtrl-C ends the demo.", first.http, first.socket())
	<-ctx.Done()
	return nil
}

// demo is one demonstration.
type demo struct {
	*cli.Env
	exe   string
	dir   string
	start time.Time
	nodes []*demoNode
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Stdout, format+"\n", args...) }

func (d *demo) startNodes(ctx context.Context, count int) error {
	secret := filepath.Join(d.dir, "secret")
	if err := os.WriteFile(secret, []byte(trust.GenerateSecret()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the demo's secret: %w", err)
	}
	ports, err := FreePorts(3 * count)
	if err != nil {
		return err
	}
	d.say("starting %d nodes on 127.0.0.1, each with an image store of its own", count)
	for i := range count {
		n := &demoNode{name: fmt.Sprintf("n%d", i+1), dir: filepath.Join(d.dir, fmt.Sprintf("n%d", i+1))}
		n.gossip, n.transfer, n.http = Loopback(ports[3*i]), Loopback(ports[3*i+1]), Loopback(ports[3*i+2])
		join := ""
		if i > 0 {
			join = d.nodes[0].transfer
		}
		if err := n.start(d.exe, secret, join, d.childEnv()); err != nil {
			return err
		}
		d.nodes = append(d.nodes, n)
	}
	ctx, cancel := context.WithTimeout(ctx, demoStartTimeout)
	defer cancel()
	for _, n := range d.nodes {
		if err := n.waitMembers(ctx, count); err != nil {
			return err
		}
		d.say("  %s  gossip %s  transfer %s", n.name, n.gossip, n.transfer)
	}
	return nil
}

func (d *demo) packImage(ctx context.Context) (string, error) {
	file := filepath.Join(d.dir, "image.tar")
	packed, err := PackImage(ctx, file, d.dir, imageBytes)
	if err != nil {
		return "", fmt.Errorf("pack an image from files of this machine: %w", err)
	}
	d.say("%s: packed %d files of this machine into %d layers, %s", demoImageName, packed.files, packed.layers, term.Bytes(packed.bytes))
	return file, nil
}

// announce runs the same commands that a user would, and sums up.
func (d *demo) announce(ctx context.Context, image string) error {
	first := d.nodes[0]
	d.say("\n$ seeder announce --from %s        # on %s", filepath.Base(image), first.name)
	if err := d.cli(ctx, "announce", "--from", image, "--timeout", demoAnnounceTimeout.String(), "--socket", first.socket()); err != nil {
		return fmt.Errorf("announce on %s: %w", first.name, err)
	}
	last := d.nodes[len(d.nodes)-1]
	d.say("\n$ seeder images        # on %s", last.name)
	if err := d.cli(ctx, "images", "--socket", last.socket()); err != nil {
		return fmt.Errorf("images on %s: %w", last.name, err)
	}
	var images report.Images
	if err := control.Dial(last.socket()).Get(ctx, "/v1/images", nil, &images); err != nil {
		return fmt.Errorf("ask %s for the images: %w", last.name, err)
	}
	if len(images.Images) != 1 || images.Images[0].Ready != len(d.nodes) {
		return fmt.Errorf("%s does not see the image ready on all %d nodes", last.name, len(d.nodes))
	}
	return d.sumUp(ctx, images.Images[0])
}

// sumUp prints what went over the wire, by the nodes' own metrics.
func (d *demo) sumUp(ctx context.Context, img report.ImageState) error {
	t := &term.Table{Term: term.Of(d.Env, d.Stdout)}
	t.Header("NODE", "SENT", "RECEIVED")
	var sent, fromFirst float64
	for i, n := range d.nodes {
		out, in, err := n.wireBytes(ctx)
		if err != nil {
			return fmt.Errorf("read the metrics of %s: %w", n.name, err)
		}
		sent += out
		if i == 0 {
			fromFirst = out
		}
		t.Add(term.Cell{Text: n.name}, term.Cell{Text: term.Bytes(int64(out))}, term.Cell{Text: term.Bytes(int64(in))})
	}
	d.say("")
	if err := t.Print(d.Stdout); err != nil {
		return err
	}
	receivers := len(d.nodes) - 1
	d.say(`
A copy loop would have sent %s from %s, %d times the image. With seeder it sent
%s, compressed and with TLS; the others had the rest of %s from each other.
Every chunk was verified.`,
		term.Bytes(img.Size*int64(receivers)), d.nodes[0].name, receivers, term.Bytes(int64(fromFirst)), term.Bytes(int64(sent)))
	d.say(`
For real, on each host of a k3s cluster (as root, with the package or make install):
  systemctl enable --now seeder      # without k3s: a secret and gossip.join first, see README.md
and on whichever host has the image:
  seeder announce k3s-dashboard:latest`)
	return nil
}

// cli runs a command of this program as a user would, with the demo's terminal.
func (d *demo) cli(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, d.exe, args...)
	cmd.Env = d.childEnv()
	cmd.Stdout, cmd.Stderr = d.Stdout, d.Stderr
	cmd.WaitDelay = 2 * time.Second
	return cmd.Run()
}

// childEnv is the environment without what would configure the nodes from
// outside, or make them talk to the supervisor of this process.
func (d *demo) childEnv() []string {
	var env []string
	for _, kv := range d.Environ() {
		if !strings.HasPrefix(kv, config.EnvPrefix) && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	return env
}

// stop ends the nodes without ceremony: what they would save is removed next.
func (d *demo) stop() {
	for _, n := range d.nodes {
		n.kill()
	}
}

// explain adds the last words of the nodes to the error that ended the demo: of
// those that died, or else of all.
func (d *demo) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; the demo's nodes and files are removed")
	}
	nodes := d.nodes
	var dead []*demoNode
	for _, n := range d.nodes {
		if n.died {
			dead = append(dead, n)
		}
	}
	if len(dead) > 0 {
		nodes = dead
	}
	var b strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&b, "\n--- last log lines of %s\n%s", n.name, n.lastLog())
	}
	_, _ = io.WriteString(d.Stderr, b.String()+"\n")
	return fmt.Errorf("demo: %w", err)
}
