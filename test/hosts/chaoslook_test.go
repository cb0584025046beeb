package hosts

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// converge waits until every host has what the catalog says, and looks at the
// invariants.
func (c *chaos) converge(after string) {
	start := time.Now()
	c.begun = start
	for _, do := range c.again {
		c.until(convergeBound, "what was refused is done", do)
	}
	c.again = nil
	for _, h := range c.hosts {
		c.until(convergeBound, fmt.Sprintf("after %s: all is well on %s", after, h.Name), func() error { return c.well(h) })
	}
	if h := c.pruned.Load(); h != nil { // what nothing protects goes now, and is noticed
		collect(h)
		c.until(convergeBound, fmt.Sprintf("after %s and garbage collection: all is well on %s", after, h.Name), func() error { return c.well(h) })
		c.pruned.Store(nil)
	}
	c.slowest = max(c.slowest, time.Since(start))
	c.sameCatalogs(after)
	for _, h := range c.hosts {
		c.invariants(h, after)
		c.converged += len(c.refs)
	}
	clear(c.wasCut)
}

// twinPatience is how long a twin that has left may be missed before somebody forgets it.
const twinPatience = 45 * time.Second

// forgetTwins is what people do about a member that has left for good while this host
// did not hear its farewell. It is counted.
func (c *chaos) forgetTwins(h *harness.Host, nodes []report.NodeState) {
	if time.Since(c.begun) < twinPatience {
		return
	}
	for _, n := range nodes {
		if n.State == report.Unreachable && slices.ContainsFunc(c.spares, func(s *harness.Host) bool { return s.Name == n.Name }) {
			c.t.Logf("%s has not heard the farewell of %s: it is forgotten by hand", h.Name, n.Name)
			c.forgotten++
			if err := c.try(h, nil, "members", "forget", n.Name); err != nil {
				c.t.Log(err)
			}
		}
	}
}

// until waits until ok holds; each try is a command or two, which take the time of what
// is waited for.
func (c *chaos) until(limit time.Duration, what string, ok func() error) {
	c.t.Helper()
	deadline, pause := time.Now().Add(limit), 50*time.Millisecond
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %s: %s: %v", limit, what, err)
		}
		time.Sleep(pause)
		pause = min(2*pause, 400*time.Millisecond)
	}
}

// well says what is not as it should be on a host.
func (c *chaos) well(h *harness.Host) error {
	var out report.Images
	if err := c.try(h, &out, "images"); err != nil {
		return err
	}
	have := map[string]report.ImageState{}
	for _, img := range out.Images {
		have[img.Reference] = img
	}
	for _, ref := range c.refs {
		row := have[ref.name]
		if len(ref.may) == 0 {
			if row.State != "withdrawn" {
				return fmt.Errorf("%s is %q, want withdrawn", ref.name, row.State)
			}
			continue
		}
		if row.State != "announced" || !slices.Contains(ref.may, row.Digest) {
			return fmt.Errorf("%s is %s at %s, want one of %v", ref.name, row.State, row.Digest, ref.may)
		}
		if len(row.Nodes) != len(c.hosts) {
			c.forgetTwins(h, row.Nodes)
			return fmt.Errorf("%s has %d nodes, want %d", ref.name, len(row.Nodes), len(c.hosts))
		}
		for _, node := range row.Nodes {
			if node.State != report.Ready {
				return fmt.Errorf("%s on %s is %s: %s", ref.name, node.Name, node.State, node.Reason)
			}
		}
		if c.pruned.Load() == h { // it may not have noticed yet
			if err := whole(c.t.Context(), c.clients[h], ref.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// sameCatalogs: invariant 5.
func (c *chaos) sameCatalogs(after string) {
	for _, ref := range c.refs {
		ref.ours.Store(len(ref.may) > 0)
		var first report.ImageState
		for i, h := range c.hosts {
			row, err := h.Image(ref.name)
			if err != nil {
				c.violate("after %s: %s does not show %s: %v", after, h.Name, ref.name, err)
				continue
			}
			if i == 0 {
				first = row
				if len(ref.may) > 0 {
					ref.may = []string{row.Digest}
				}
			}
			if row.Digest != first.Digest || row.Version != first.Version || row.State != first.State {
				c.violate("after %s: %s has %s at %s version %d, %s has %s version %d", after,
					c.hosts[0].Name, ref.name, first.Digest, first.Version, h.Name, row.Digest, row.Version)
			}
		}
	}
}

// invariants looks at what a host has: every byte of every announced image by its
// digest, what CRI says, what is staged and leased.
func (c *chaos) invariants(h *harness.Host, after string) {
	cl := c.clients[h]
	for _, ref := range c.refs {
		if len(ref.may) == 0 {
			continue
		}
		var img images.Image
		var err error
		harness.Eventually(c.t, 30*time.Second, "containerd answers on "+h.Name, func() error { // gRPC tries again in its own time
			if img, err = cl.ImageService().Get(c.t.Context(), ref.name); errdefs.IsUnavailable(err) {
				return err
			}
			return nil
		})
		if err != nil || img.Target.Digest.String() != ref.may[0] {
			c.violate("after %s: on %s the record of %s is %s, %v; want %s", after, h.Name, ref.name, img.Target.Digest, err, ref.may[0])
			continue
		}
		if looked := h.Name + " " + img.Target.Digest.String(); !c.looked[looked] || c.wasCut[h] || c.ended {
			if err := c.digests(h, img); err != nil {
				c.violate("after %s: %s on %s: %v", after, ref.name, h.Name, err)
			}
			c.looked[looked] = true
		}
		if c.wasCut[h] {
			if err := unpacked(c.t.Context(), h, cl, img, c.rottenOn(h)...); err != nil {
				c.violate("after %s: %s on %s: %v", after, ref.name, h.Name, err)
			}
		}
		if status, err := h.ImageStatus(ref.name); err != nil || status == nil {
			c.violate("after %s: CRI on %s does not know %s: %v", after, h.Name, ref.name, err)
		}
	}
	if files := harness.OpenFiles(h.Seeder); files["anon_inode:inotify"] > 0 {
		c.violate("seeder on %s watches files: a full inotify limit is a fault of its own then", h.Name)
	}
}

// digests reads every blob of an image and compares it with its digest: invariants
// 1 and 2. What a fault has changed is found when somebody asks for it.
func (c *chaos) digests(h *harness.Host, img images.Image) error {
	ctx, cs := c.t.Context(), c.clients[h].ContentStore()
	read := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		ra, err := cs.ReaderAt(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
		defer ra.Close()
		got, err := digest.FromReader(io.NewSectionReader(ra, 0, ra.Size()))
		if err == nil && got != desc.Digest && !c.isRotten(h, desc.Digest.Encoded()) {
			err = fmt.Errorf("its bytes have the digest %s", got)
		}
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
		return images.Children(ctx, cs, desc)
	}
	return images.Walk(ctx, images.HandlerFunc(read), img.Target)
}

// watch looks at the records of a host all the time until the suite ends: each
// stands for something that is there, whatever goes on (invariant 2).
func (c *chaos) watch(h *harness.Host) {
	cl := c.clients[h]
	c.watching.Go(func() {
		for c.ctx.Err() == nil {
			for _, ref := range c.refs {
				if !ref.ours.Load() {
					continue
				}
				pruned := c.pruned.Load() == h // somebody else takes away its layers
				if err := whole(c.ctx, cl, ref.name, c.rottenOn(h)...); err != nil && c.ctx.Err() == nil && !pruned && c.pruned.Load() != h {
					c.violate("on %s: %v", h.Name, err)
				}
			}
			c.looks.Add(1)
			time.Sleep(200 * time.Millisecond) // the pace of the watch
		}
	})
}

// whole says what of an image is missing, where its record is there and stays. What a test
// has changed in the content store goes before it comes back.
func whole(ctx context.Context, cl *client.Client, ref string, rotten ...string) error {
	img, err := cl.ImageService().Get(ctx, ref)
	if err != nil {
		return nil // not there, or containerd is away
	}
	ok, _, _, missing, err := images.Check(ctx, cl.ContentStore(), img.Target, platforms.Default())
	if err == nil && ok && len(missing) == 0 || err != nil && !errdefs.IsNotFound(err) {
		return nil
	}
	if again, gerr := cl.ImageService().Get(ctx, ref); gerr != nil || again.Target.Digest != img.Target.Digest {
		return nil // it has moved meanwhile
	}
	var digests []digest.Digest
	for _, m := range missing {
		if !slices.Contains(rotten, m.Digest.Encoded()) {
			digests = append(digests, m.Digest)
		}
	}
	if len(digests) == 0 && err == nil && len(missing) > 0 {
		return nil
	}
	return fmt.Errorf("%s stands for %s, of which is missing: %v %v", ref, img.Target.Digest, digests, err)
}

// pins says what is pinned on a host that nobody announces: the kubelet could never
// collect it.
func (c *chaos) pins(h *harness.Host) error {
	for _, name := range pinned(h) {
		announced := slices.ContainsFunc(c.refs, func(r *chaosRef) bool {
			return len(r.may) > 0 && (name == r.name || name == strings.TrimSuffix(r.name, ":latest")+"@"+r.may[0])
		})
		if !announced {
			return fmt.Errorf("%s is pinned", name)
		}
	}
	return nil
}

// end looks at what is left when everything is over, and says what was done.
func (c *chaos) end() {
	c.stop()
	c.watching.Wait()
	c.ended = true
	c.converge("the end")
	var received float64
	for _, h := range c.hosts {
		harness.Eventually(c.t, time.Minute, "nothing is left leased or staged on "+h.Name, func() error {
			leased, previous := leasedForWork(h)
			staged, _ := filepath.Glob(h.Path(dataDir + "/stage/*"))
			if len(leased) > 0 || len(staged) > 0 {
				return fmt.Errorf("%q %q", leased, staged)
			}
			if previous > len(c.refs) {
				return fmt.Errorf("%d earlier versions of %d images", previous, len(c.refs))
			}
			return c.pins(h)
		})
		if rss := harness.PeakRSS(c.t, h.Seeder.PID); rss > 128<<20 {
			c.violate("seeder on %s took %.0f MB", h.Name, rss/1e6)
		}
		in, _ := harness.LinkBytes(h)
		received += in
	}
	for _, log := range c.logs {
		if p := panicked([]byte(log.String())); p != "" {
			c.violate("a daemon died: %s", p)
		}
	}
	var names []string
	injected := 0
	for name, k := range c.faults {
		names = append(names, fmt.Sprintf("%s %d", name, k))
		injected += k
	}
	slices.Sort(names)
	c.t.Logf("%d faults (%s); %d announcements, %d refused while a fault was there, %d withdrawals; the kubelet removed %d images; %d farewells of twins were not heard; %d images converged on hosts, the slowest round after %v; %.0f MB received, %.2f times what the builds need; %d looks at the records; %d violations",
		injected, strings.Join(names, ", "), c.announced, c.refused, c.withdrawn, c.collected.Load(), c.forgotten, c.converged, c.slowest.Round(100*time.Millisecond),
		received/1e6, received/c.needed, c.looks.Load(), len(c.violations))
}
