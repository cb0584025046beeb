package test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/report"
)

// The size of the chaos suite: `make chaos` makes it longer.
var (
	chaosSeed   = benchList("CHAOS_SEED", "1")
	chaosRounds = benchList("CHAOS_ROUNDS", "0") // 0: until each fault was there once
	chaosHold   = benchList("CHAOS_HOLD", "1")   // times the shortest that a fault lasts
)

// convergeBound is how long after the last fault has ended everything must be as
// it should: members find each other again within half a minute (memberlist's
// push/pull and the tries to join), a failed fetch is tried again within a minute.
const convergeBound = 100 * time.Second

// fault is one thing that goes wrong on one host, or between it and others.
type fault struct {
	name  string
	hold  time.Duration                        // at least
	spare bool                                 // a host that people import images on is not its victim
	begin func(c *chaos, h *host) (end func()) // end waits for nothing but what it starts
}

// faults are the ways in which things go wrong.
var faults = []fault{
	{name: "seeder killed", begin: func(c *chaos, h *host) func() {
		c.killSeeder(h)
		return func() { c.startSeeder(h) }
	}},
	{name: "containerd killed", spare: true, begin: func(c *chaos, h *host) func() {
		h.containerd.stop(c.t, syscall.SIGKILL)
		return h.startContainerd
	}},
	{name: "containerd away", hold: 20 * time.Second, spare: true, begin: func(c *chaos, h *host) func() {
		h.containerd.stop(c.t, syscall.SIGTERM)
		return h.startContainerd
	}},
	{name: "containerd hangs", hold: 8 * time.Second, spare: true, begin: func(_ *chaos, h *host) func() {
		h.containerd.freeze()
		return h.containerd.thaw
	}},
	{name: "one-way loss", hold: 8 * time.Second, begin: func(c *chaos, h *host) func() {
		others := slices.DeleteFunc(slices.Clone(c.n.hosts), func(o *host) bool { return o == h })
		h.drop(100, others[c.rng.IntN(len(others))])
		return h.dropNothing
	}},
	{name: "5 % loss", hold: 4 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.drop(5)
		return h.dropNothing
	}},
	{name: "200 ms delay", hold: 4 * time.Second, begin: func(_ *chaos, h *host) func() {
		return h.slowLink(100 * time.Millisecond) // each way
	}},
	{name: "cable pulled", hold: 10 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.pull()
		return h.push
	}},
	{name: "data_dir full", hold: 5 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.fill(dataDir)
		return func() { h.empty(dataDir) }
	}},
	{name: "containerd's disk full", hold: 5 * time.Second, spare: true, begin: func(_ *chaos, h *host) func() {
		h.fill(containerdRoot)
		return func() { h.empty(containerdRoot) }
	}},
	{name: "data_dir read-only", hold: 5 * time.Second, begin: func(c *chaos, h *host) func() {
		h.breakData()
		return func() {
			c.killSeeder(h)
			h.fixData()
			c.startSeeder(h)
		}
	}},
	{name: "garbage collection", hold: 4 * time.Second, begin: func(c *chaos, h *host) func() {
		return c.pacing(func() { h.collect() })
	}},
	{name: "content pruned", hold: 4 * time.Second, begin: func(c *chaos, h *host) func() {
		c.pruned.Store(h)
		return c.pacing(func() { h.ctrCmd("content", "prune", "references").Run() })
	}},
	{name: "images removed", spare: true, begin: func(c *chaos, h *host) func() {
		for _, name := range h.names() {
			h.ctrCmd("images", "rm", "--sync", name).Run() // it may be gone already
		}
		return func() {}
	}},
	{name: "clock a day ahead", hold: 4 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.jump(24 * time.Hour)
		return func() { h.jump(0) }
	}},
	{name: "clock a day behind", hold: 4 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.jump(-24 * time.Hour)
		return func() { h.jump(0) }
	}},
	{name: "staging garbled", hold: 3 * time.Second, begin: func(c *chaos, h *host) func() {
		return c.pacing(func() { c.garbleStaging(h) })
	}},
	{name: "catalog garbled", spare: true, begin: func(c *chaos, h *host) func() {
		c.killSeeder(h)
		if err := garble(c.rng, h.path(dataDir+"/catalog.db"), 1+c.rng.IntN(200)); err != nil {
			c.t.Fatal(err)
		}
		return func() { c.startSeeder(h) }
	}},
	{name: "no file descriptors", hold: 5 * time.Second, begin: func(_ *chaos, h *host) func() {
		before := h.limitFiles(h.seeder, "1")
		return func() { h.limitFiles(h.seeder, before) }
	}},
	{name: "seeder frozen", hold: 12 * time.Second, begin: func(_ *chaos, h *host) func() {
		h.seeder.freeze()
		return h.seeder.thaw
	}},
}

// chaos is a cluster in which things go wrong.
type chaos struct {
	t    *testing.T
	n    *network
	rng  *rand.Rand
	refs []*chaosRef

	clients   map[*host]*client.Client
	builds    uint64
	converged int // images on hosts, over all rounds
	announced int
	refused   int // announcements that failed while a fault was there
	withdrawn int
	faults    map[string]int
	again     []func() error  // what failed while a fault was there
	logs      []*lockedBuffer // of every daemon that ever ran
	wireBytes float64         // what a host receives for a build
	needed    float64         // what all hosts receive for the builds that they had to get
	slowest   time.Duration   // to converge after a fault

	ctx      context.Context // ends the watches
	stop     context.CancelFunc
	watching sync.WaitGroup
	looks    atomic.Int64
	pruned   atomic.Pointer[host] // where the layers of unpacked images are thrown away

	mu         sync.Mutex
	violations []string
}

// chaosRef is a reference, and what may become of it.
type chaosRef struct {
	name string      // as the catalog has it
	may  []string    // the builds, by digest, of which one has to win; none: withdrawn
	ours atomic.Bool // not withdrawn: seeder looks after it
}

// violate notes what must never be, once where it stays so.
func (c *chaos) violate(format string, args ...any) {
	v := fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.violations, v) {
		c.violations = append(c.violations, v)
		c.t.Errorf("violation: %s", v)
	}
}

// TestChaos: announcing, announcing again, withdrawing and joining go on while
// everything breaks that can: after each fault the invariants hold on every host
// and the cluster converges.
func TestChaos(t *testing.T) {
	needRoot(t)
	t.Parallel() // it waits most of the time
	seed, err := strconv.ParseUint(chaosSeed[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	rounds, _ := strconv.Atoi(chaosRounds[0])
	hold, _ := strconv.ParseFloat(chaosHold[0], 64)
	t.Logf("seed %d", seed)
	c := &chaos{t: t, n: newNetwork(t, "100mbit"), rng: rand.New(rand.NewPCG(seed, 0)), faults: map[string]int{}, clients: map[*host]*client.Client{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	defer func() { c.stop(); c.watching.Wait() }()
	c.n.program = jumpProgram(t)
	for range 4 {
		c.addHost()
	}
	c.n.hosts[0].awaitMembers(4)
	for i := range 3 {
		c.refs = append(c.refs, &chaosRef{name: fmt.Sprintf("docker.io/library/app%d:latest", i)})
		c.build(c.n.hosts[0], c.refs[i])
	}
	c.converge("the start")
	c.measure()
	for _, h := range c.n.hosts {
		c.watch(h)
	}

	order := c.rng.Perm(len(faults))
	for round := 0; len(order) > 0 || round < rounds; round++ {
		if len(order) == 0 {
			order = c.rng.Perm(len(faults))
		}
		some := order[:min(len(order), 2+c.rng.IntN(2))]
		order = order[len(some):]
		if round == 2 {
			c.watch(c.addHost()) // a host joins in the middle of it
		}
		c.round(some, hold)
		if round%3 == 1 {
			c.partition(hold)
		}
	}
	c.end()
}

func (c *chaos) addHost() *host {
	h := c.n.addHost(newest)
	h.disks(160, 640)
	h.startContainerd()
	c.clients[h] = h.client()
	c.startSeeder(h)
	return h
}

// measure takes what one host receives for one build, from the builds at the start.
func (c *chaos) measure() {
	received, _ := c.n.hosts[1].linkBytes()
	c.wireBytes = received / float64(len(c.refs))
	c.needed = float64(c.builds) * float64(len(c.n.hosts)-1) * c.wireBytes
}

func (c *chaos) startSeeder(h *host) {
	h.startSeeder("SEEDER_LOG_LEVEL=debug")
	c.logs = append(c.logs, h.seeder.log)
}

func (c *chaos) killSeeder(h *host) { h.seeder.stop(c.t, syscall.SIGKILL) }

// pacing does something all the time until the returned function is called.
func (c *chaos) pacing(do func()) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			do()
			time.Sleep(50 * time.Millisecond) // the pace of the fault
		}
	})
	return func() { cancel(); wg.Wait() }
}

// garbleStaging overwrites a piece of what is staged on a host. The random numbers
// are not the suite's: how often this happens depends on time.
func (c *chaos) garbleStaging(h *host) {
	for _, dir := range []string{"stage", "cache"} {
		files, _ := filepath.Glob(h.path(filepath.Join(dataDir, dir, "*.frames")))
		if len(files) > 0 {
			garble(rand.New(rand.NewPCG(uint64(len(files)), 1)), files[len(files)/2], 1) // it may be gone again
		}
	}
}

// round lets some faults begin on different hosts while an image is announced, and
// waits until all is well after they ended.
func (c *chaos) round(which []int, hold float64) {
	victims := c.rng.Perm(len(c.n.hosts))
	var people []*host // the hosts on which somebody imports images
	var broken []*host
	longest := time.Second
	for i, k := range which {
		h := c.n.hosts[victims[i]]
		broken = append(broken, h)
		c.faults[faults[k].name]++
		longest = max(longest, time.Duration(float64(faults[k].hold)*hold))
		if !faults[k].spare {
			people = append(people, h)
		}
	}
	for _, v := range victims[len(which):] {
		people = append(people, c.n.hosts[v])
	}
	ref := c.refs[c.rng.IntN(len(c.refs))]
	by := people[c.rng.IntN(len(people))]
	withdraw := c.rng.IntN(4) == 0
	target := c.importBuild(by, ref)
	begin := time.Duration(c.rng.Int64N(int64(1500 * time.Millisecond)))
	c.t.Logf("%s is announced by %s; after %v: %s", ref.name, by.name, begin.Round(time.Millisecond), c.describe(which, broken))

	done := make(chan error, 1)
	go func() { done <- by.try(nil, "announce", "--detach", ref.name) }() // received below
	time.Sleep(begin)                                                     // the moment of the fault
	var ends []func()
	for i, k := range which {
		ends = append(ends, faults[k].begin(c, broken[i]))
	}
	err := <-done
	until := time.Now().Add(longest)
	c.book(ref, by, target, err)
	if err == nil && withdraw {
		args := []string{"withdraw", ref.name, "--purge"}[:2+c.rng.IntN(2)]
		ref.ours.Store(false)
		ref.may = nil
		c.withdrawn++
		if err := by.try(nil, args...); err != nil {
			c.refused++
			c.later(func() error { return by.try(nil, args...) })
		}
	}
	time.Sleep(time.Until(until)) // the length of the fault
	for _, end := range ends {
		end()
	}
	c.converge(c.describe(which, broken))
}

func (c *chaos) describe(which []int, broken []*host) string {
	var out []string
	for i, k := range which {
		out = append(out, faults[k].name+" on "+broken[i].name)
	}
	return strings.Join(out, ", ")
}

// partition cuts the cluster in two halves, in each of which somebody announces
// another build of the same reference, and heals it.
func (c *chaos) partition(hold float64) {
	c.faults["partition"]++
	hosts := slices.Clone(c.n.hosts)
	c.rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	left, right := hosts[:len(hosts)/2], hosts[len(hosts)/2:]
	c.t.Logf("partition: %s on one side; both announce", left[0].name)
	for _, h := range left {
		h.drop(100, right...)
	}
	for _, h := range right {
		h.drop(100, left...)
	}
	until := time.Now().Add(time.Duration(float64(12*time.Second) * hold))
	ref := c.refs[c.rng.IntN(len(c.refs))]
	var may []string
	for _, h := range []*host{left[0], right[0]} {
		target := c.importBuild(h, ref)
		c.book(ref, h, target, h.try(nil, "announce", "--detach", ref.name))
		may = append(may, ref.may...)
	}
	ref.may = may
	c.needed -= c.wireBytes * float64(len(right)) // the one that loses stays on its side
	time.Sleep(time.Until(until))                 // the length of the fault
	for _, h := range hosts {
		h.dropNothing()
	}
	c.converge("partition")
}

// importBuild imports a new build of a reference on a host.
func (c *chaos) importBuild(h *host, ref *chaosRef) (target string) {
	c.builds++
	c.needed += c.wireBytes * float64(len(c.n.hosts)-1)
	img := newImage(c.t, imageSpec{ref: ref.name, says: fmt.Sprintf("build %d", c.builds), payload: 2 << 20, random: 5 << 20, seed: c.builds})
	archive := img.dockerArchive(c.t, c.n.dir)
	h.ctr("images", "import", archive)
	if err := os.Remove(archive); err != nil {
		c.t.Fatal(err)
	}
	record, err := c.clients[h].ImageService().Get(c.t.Context(), ref.name)
	if err != nil {
		c.t.Fatal(err)
	}
	return record.Target.Digest.String()
}

// book notes what an announcement means for what ref may become.
func (c *chaos) book(ref *chaosRef, by *host, target string, err error) {
	if err == nil {
		c.announced++
		ref.may = []string{target}
		return
	}
	c.refused++
	c.t.Logf("%s could not announce: %v", by.name, err)
	// Somebody who reads that tries again when it works; the node may as well have
	// noticed the import by itself.
	ref.may = append(ref.may, target)
	c.later(func() error { return by.try(nil, "announce", "--detach", ref.name) })
}

// later does again what failed while a fault was there.
func (c *chaos) later(do func() error) { c.again = append(c.again, do) }

// build imports and announces with nothing wrong.
func (c *chaos) build(h *host, ref *chaosRef) {
	c.book(ref, h, c.importBuild(h, ref), h.try(nil, "announce", ref.name))
}

// converge waits until every host has what the catalog says, and looks at the
// invariants.
func (c *chaos) converge(after string) {
	start := time.Now()
	for _, do := range c.again {
		eventually(c.t, convergeBound, "what was refused is done", do)
	}
	c.again = nil
	for _, h := range c.n.hosts {
		eventually(c.t, convergeBound, fmt.Sprintf("after %s: all is well on %s", after, h.name), func() error { return c.well(h) })
	}
	if h := c.pruned.Load(); h != nil { // what nothing protects goes now, and is noticed
		h.collect()
		eventually(c.t, convergeBound, fmt.Sprintf("after %s and garbage collection: all is well on %s", after, h.name), func() error { return c.well(h) })
		c.pruned.Store(nil)
	}
	c.slowest = max(c.slowest, time.Since(start))
	c.sameCatalogs(after)
	for _, h := range c.n.hosts {
		c.invariants(h, after)
		c.converged += len(c.refs)
	}
}

// well says what is not as it should be on a host.
func (c *chaos) well(h *host) error {
	var out report.Images
	if err := h.try(&out, "images"); err != nil {
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
		if len(row.Nodes) != len(c.n.hosts) {
			return fmt.Errorf("%s has %d nodes, want %d", ref.name, len(row.Nodes), len(c.n.hosts))
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
		for i, h := range c.n.hosts {
			row, err := h.image(ref.name)
			if err != nil {
				c.violate("after %s: %s does not show %s: %v", after, h.name, ref.name, err)
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
					c.n.hosts[0].name, ref.name, first.Digest, first.Version, h.name, row.Digest, row.Version)
			}
		}
	}
}

// invariants looks at what a host has: every byte of every announced image by its
// digest, what CRI says, what is staged and leased.
func (c *chaos) invariants(h *host, after string) {
	cl := c.clients[h]
	for _, ref := range c.refs {
		if len(ref.may) == 0 {
			continue
		}
		var img images.Image
		var err error
		eventually(c.t, 30*time.Second, "containerd answers on "+h.name, func() error { // gRPC tries again in its own time
			if img, err = cl.ImageService().Get(c.t.Context(), ref.name); errdefs.IsUnavailable(err) {
				return err
			}
			return nil
		})
		if err != nil || img.Target.Digest.String() != ref.may[0] {
			c.violate("after %s: on %s the record of %s is %s, %v; want %s", after, h.name, ref.name, img.Target.Digest, err, ref.may[0])
			continue
		}
		if err := digests(c.t.Context(), cl, img); err != nil {
			c.violate("after %s: %s on %s: %v", after, ref.name, h.name, err)
		}
		if status, err := h.imageStatus(ref.name); err != nil || status == nil {
			c.violate("after %s: CRI on %s does not know %s: %v", after, h.name, ref.name, err)
		}
	}
	if files := openFiles(h.seeder); files["anon_inode:inotify"] > 0 {
		c.violate("seeder on %s watches files: a full inotify limit is a fault of its own then", h.name)
	}
}

// digests reads every blob of an image and compares it with its digest: invariants
// 1 and 2.
func digests(ctx context.Context, cl *client.Client, img images.Image) error {
	cs := cl.ContentStore()
	read := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		ra, err := cs.ReaderAt(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
		defer ra.Close()
		got, err := digest.FromReader(io.NewSectionReader(ra, 0, ra.Size()))
		if err == nil && got != desc.Digest {
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
func (c *chaos) watch(h *host) {
	cl := c.clients[h]
	c.watching.Go(func() {
		for c.ctx.Err() == nil {
			for _, ref := range c.refs {
				if !ref.ours.Load() {
					continue
				}
				pruned := c.pruned.Load() == h // somebody else takes away its layers
				if err := whole(c.ctx, cl, ref.name); err != nil && c.ctx.Err() == nil && !pruned && c.pruned.Load() != h {
					c.violate("on %s: %v", h.name, err)
				}
			}
			c.looks.Add(1)
			time.Sleep(200 * time.Millisecond) // the pace of the watch
		}
	})
}

// whole says what of an image is missing, where its record is there and stays.
func whole(ctx context.Context, cl *client.Client, ref string) error {
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
		digests = append(digests, m.Digest)
	}
	return fmt.Errorf("%s stands for %s, of which is missing: %v %v", ref, img.Target.Digest, digests, err)
}

// end looks at what is left when everything is over, and says what was done.
func (c *chaos) end() {
	c.stop()
	c.watching.Wait()
	var received float64
	for _, h := range c.n.hosts {
		eventually(c.t, time.Minute, "nothing is left leased or staged on "+h.name, func() error {
			leased, previous := h.leasedForWork()
			staged, _ := filepath.Glob(h.path(dataDir + "/stage/*"))
			if len(leased) > 0 || len(staged) > 0 {
				return fmt.Errorf("%q %q", leased, staged)
			}
			if previous > len(c.refs) {
				return fmt.Errorf("%d earlier versions of %d images", previous, len(c.refs))
			}
			return nil
		})
		if rss := peakRSS(c.t, h.seeder.pid); rss > 192<<20 {
			c.violate("seeder on %s took %.0f MB", h.name, rss/1e6)
		}
		in, _ := h.linkBytes()
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
	c.t.Logf("%d faults (%s); %d announcements, %d refused while a fault was there, %d withdrawals; %d images converged on hosts, the slowest round after %v; %.0f MB received, %.2f times what the builds need; %d looks at the records; %d violations",
		injected, strings.Join(names, ", "), c.announced, c.refused, c.withdrawn, c.converged, c.slowest.Round(100*time.Millisecond),
		received/1e6, received/c.needed, c.looks.Load(), len(c.violations))
}
