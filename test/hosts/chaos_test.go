package hosts

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"seeder/test/harness"
)

// The size of the chaos suite: `make chaos` makes it longer.
var (
	chaosSeed   = harness.EnvList("CHAOS_SEED", "1")
	chaosRounds = harness.EnvList("CHAOS_ROUNDS", "0") // 0: until each fault was there once
	chaosHold   = harness.EnvList("CHAOS_HOLD", "1")   // times the shortest that a fault lasts
)

// convergeBound is how long after the last fault has ended everything must be as
// it should: members find each other again within half a minute (memberlist's
// push/pull and the tries to join), a failed fetch is tried again within a minute.
const convergeBound = 100 * time.Second

// chaos is a cluster in which things go wrong.
type chaos struct {
	t      *testing.T
	n      *harness.Network
	hosts  []*harness.Host
	spares []*harness.Host // of twins
	rng    *rand.Rand
	refs   []*chaosRef
	by     *harness.Host // who announces in this round

	clients   map[*harness.Host]*client.Client
	builds    uint64
	converged int // images on hosts, over all rounds
	announced int
	refused   int // announcements that failed while a fault was there
	withdrawn int
	faults    map[string]int
	again     []func() error          // what failed while a fault was there
	logs      []*harness.LockedBuffer // of every daemon that ever ran
	wireBytes float64                 // what a host receives for a build
	needed    float64                 // what all hosts receive for the builds that they had to get
	slowest   time.Duration           // to converge after a fault

	ctx      context.Context // ends the watches
	stop     context.CancelFunc
	watching sync.WaitGroup
	looks    atomic.Int64
	pruned   atomic.Pointer[harness.Host] // where the layers of unpacked images are thrown away

	collected atomic.Int64               // images that the kubelet removed
	moves     int                        // of addresses
	wasCut    map[*harness.Host]bool     // whose power was, since what is unpacked was last looked at
	rotten    map[*harness.Host][]string // blobs that faults changed
	looked    map[string]bool            // images whose bytes were looked at, by host
	ended     bool                       // all is looked at once more
	begun     time.Time                  // converging
	forgotten int                        // twins, by hand

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
	harness.NeedRoot(t)
	t.Parallel() // it waits most of the time
	seed, err := strconv.ParseUint(chaosSeed[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	rounds, _ := strconv.Atoi(chaosRounds[0])
	hold, _ := strconv.ParseFloat(chaosHold[0], 64)
	t.Logf("seed %d", seed)
	c := &chaos{
		t: t, n: harness.NewNetwork(t, "100mbit"), rng: rand.New(rand.NewPCG(seed, 0)), faults: map[string]int{},
		clients: map[*harness.Host]*client.Client{}, rotten: map[*harness.Host][]string{}, wasCut: map[*harness.Host]bool{}, looked: map[string]bool{},
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	defer func() { c.stop(); c.watching.Wait() }()
	c.n.Program = jumpProgram(t)
	for range 4 {
		c.addHost()
	}
	for range 2 {
		s := c.n.AddHost(harness.Newest)
		s.Write("/etc/seeder/secret", harness.Secret+"\n", 0o600)
		s.Sh("mkdir -p " + dataDir)
		c.spares = append(c.spares, s)
	}
	c.hosts[0].AwaitMembers(4)
	for i := range 3 {
		c.refs = append(c.refs, &chaosRef{name: fmt.Sprintf("docker.io/library/app%d:latest", i)})
		c.build(c.hosts[0], c.refs[i])
	}
	c.converge("the start")
	c.measure()
	for _, h := range c.hosts {
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
		switch round % 6 {
		case 1, 4:
			c.partition(hold)
		case 5:
			c.blackout()
		}
	}
	c.end()
}

// firstVersions are the containerds of the hosts until they are upgraded.
var firstVersions = []string{harness.Newest, "1.7", "2.2", "1.7", harness.Newest}

func (c *chaos) addHost() *harness.Host {
	h := c.n.AddHost(firstVersions[len(c.hosts)])
	c.hosts = append(c.hosts, h)
	disks(h, 160, 640)
	h.StartContainerd()
	c.clients[h] = h.Client()
	c.startSeeder(h)
	return h
}

// measure takes what one host receives for one build, from the builds at the start.
func (c *chaos) measure() {
	received, _ := harness.LinkBytes(c.hosts[1])
	c.wireBytes = received / float64(len(c.refs))
	c.needed = float64(c.builds) * float64(len(c.hosts)-1) * c.wireBytes
}

const chaosLog = "SEEDER_LOG_LEVEL=debug"

func (c *chaos) startSeeder(h *harness.Host) {
	h.StartSeeder(chaosLog)
	c.logs = append(c.logs, h.Seeder.Log)
}

func (c *chaos) killSeeder(h *harness.Host) { h.Seeder.Stop(c.t, syscall.SIGKILL) }

// round lets some faults begin on different hosts while an image is announced, and
// waits until all is well after they ended.
func (c *chaos) round(which []int, hold float64) {
	c.kubelets()
	broken, people := c.victims(which)
	longest := time.Second
	for _, k := range which {
		c.faults[faults[k].name]++
		share := 0.25 + 0.75*c.rng.Float64() // not always as long
		longest = max(longest, time.Duration(float64(faults[k].hold)*hold*share))
	}
	ref := c.refs[c.rng.IntN(len(c.refs))]
	c.by = people[c.rng.IntN(len(people))]
	by := c.by
	withdraw := c.rng.IntN(4) == 0
	target := c.importBuild(by, ref)
	begin := time.Duration(c.rng.Int64N(int64(1500 * time.Millisecond)))
	what := c.describe(which, broken)
	c.t.Logf("%s is announced by %s; after %v: %s", ref.name, by.Name, begin.Round(time.Millisecond), what)

	done := make(chan error, 1)
	go func() { done <- c.try(by, nil, "announce", "--detach", ref.name) }() // received below
	time.Sleep(begin)                                                        // the moment of the fault
	var ends, stay []func()
	for i, k := range which {
		end := faults[k].begin(c, broken[i])
		if faults[k].stays {
			stay = append(stay, end)
		} else {
			ends = append(ends, end)
		}
	}
	err := <-done
	until := time.Now().Add(longest)
	c.book(ref, by, target, err)
	if err == nil && withdraw {
		c.withdraw(by, ref, c.rng.IntN(2) == 0)
	}
	time.Sleep(time.Until(until)) // the length of the fault
	for _, end := range ends {
		end()
	}
	c.converge(what)
	for _, end := range stay {
		end()
	}
}

// victims chooses a host for each fault, and says on which hosts people import images.
func (c *chaos) victims(which []int) (broken, people []*harness.Host) {
	var rest []*harness.Host
	for _, i := range c.rng.Perm(len(c.hosts)) {
		rest = append(rest, c.hosts[i])
	}
	for _, k := range which {
		at := slices.IndexFunc(rest, func(h *harness.Host) bool { return faults[k].able == nil || faults[k].able(c, h) })
		h := rest[at] // only one host is not able
		rest = slices.Delete(rest, at, at+1)
		broken = append(broken, h)
		if !faults[k].spare {
			people = append(people, h)
		}
	}
	return broken, append(people, rest...)
}

// withdraw is done again later where a fault is in its way.
func (c *chaos) withdraw(by *harness.Host, ref *chaosRef, purge bool) {
	args := []string{"withdraw", ref.name}
	if purge {
		args = append(args, "--purge")
	}
	ref.ours.Store(false)
	ref.may = nil
	c.withdrawn++
	if err := c.try(by, nil, args...); err != nil {
		c.refused++
		c.later(func() error {
			err := c.try(by, nil, args...)
			if err != nil && strings.Contains(err.Error(), "it is not announced") {
				return nil // the daemon has done it, when it could again
			}
			return err
		})
	}
}

// commandBound is how long a command may take that does not wait for other hosts.
const commandBound = 25 * time.Second

// try runs the command line on a host. One that hangs is a violation.
func (c *chaos) try(h *harness.Host, out any, args ...string) error {
	start := time.Now()
	err := h.Try(out, args...)
	if took := time.Since(start); took > commandBound {
		c.violate("seeder %v on %s took %s: %v", args, h.Name, took.Round(time.Second), err)
	}
	return err
}

// others are all hosts but one.
func (c *chaos) others(h *harness.Host) []*harness.Host {
	return slices.DeleteFunc(slices.Clone(c.hosts), func(o *harness.Host) bool { return o == h })
}

func (c *chaos) describe(which []int, broken []*harness.Host) string {
	var out []string
	for i, k := range which {
		out = append(out, faults[k].name+" on "+broken[i].Name)
	}
	return strings.Join(out, ", ")
}

// partition cuts the cluster in two halves, in each of which somebody announces
// another build of the same reference, and heals it.
func (c *chaos) partition(hold float64) {
	c.faults["partition"]++
	hosts := slices.Clone(c.hosts)
	c.rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	left, right := hosts[:len(hosts)/2], hosts[len(hosts)/2:]
	c.t.Logf("partition: %s on one side; both announce", left[0].Name)
	for _, h := range left {
		drop(h, 100, right...)
	}
	for _, h := range right {
		drop(h, 100, left...)
	}
	until := time.Now().Add(time.Duration(float64(12*time.Second) * hold))
	ref := c.refs[c.rng.IntN(len(c.refs))]
	var may []string
	for _, h := range []*harness.Host{left[0], right[0]} {
		target := c.importBuild(h, ref)
		c.book(ref, h, target, c.try(h, nil, "announce", "--detach", ref.name))
		may = append(may, ref.may...)
	}
	ref.may = may
	c.needed -= c.wireBytes * float64(len(right)) // the one that loses stays on its side
	time.Sleep(time.Until(until))                 // the length of the fault
	for _, h := range hosts {
		dropNothing(h)
	}
	c.converge("partition")
}

// importBuild imports a new build of a reference on a host.
func (c *chaos) importBuild(h *harness.Host, ref *chaosRef) (target string) {
	c.builds++
	c.needed += c.wireBytes * float64(len(c.hosts)-1)
	img := harness.NewImage(c.t, harness.ImageSpec{Ref: ref.name, Says: fmt.Sprintf("build %d", c.builds), Payload: 1 << 20, Random: 3 << 20, Seed: c.builds})
	archive := img.DockerArchive(c.t, c.n.Dir)
	h.Ctr("images", "import", archive)
	syncFS(h, containerdRoot) // ctr does not, and this is about seeder
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
func (c *chaos) book(ref *chaosRef, by *harness.Host, target string, err error) {
	if err == nil {
		c.announced++
		ref.may = []string{target}
		return
	}
	c.refused++
	c.t.Logf("%s could not announce: %v", by.Name, err)
	// Somebody who reads that tries again when it works; the node may as well have
	// noticed the import by itself.
	ref.may = append(ref.may, target)
	c.later(func() error { return c.try(by, nil, "announce", "--detach", ref.name) })
}

// later does again what failed while a fault was there.
func (c *chaos) later(do func() error) { c.again = append(c.again, do) }

// build imports and announces with nothing wrong.
func (c *chaos) build(h *harness.Host, ref *chaosRef) {
	c.book(ref, h, c.importBuild(h, ref), c.try(h, nil, "announce", ref.name))
}
