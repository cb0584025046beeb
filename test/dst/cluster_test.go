package dst

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"seeder/p2p"
	"seeder/p2p/catalog"
	"seeder/p2p/p2ptest"
	"seeder/p2p/trust"
)

// cluster is all hosts of a course. One goroutine uses it, in a bubble of synctest.
type cluster struct {
	base     string
	mounts   bool
	log      *slog.Logger
	net      *p2ptest.Network
	machines []*machine
	zombies  sync.WaitGroup // what runs of crashed machines
	work     sync.WaitGroup // of operators
	ends     []ending
	rotation int
	villains int
	twins    int
	ghosts   time.Time // when members were made up last
	// zombieMachines counts those that have crashed in this round: they hold files for a
	// while.
	zombieMachines int
	moves          int
	touched        map[string]bool           // blobs, targets and seed indexes that faults took from a host, by hex
	graves         map[string]catalog.Record // the withdrawal of each reference that wins
	own            map[int]bool              // descriptors that belong to faults
	builds         uint64
	decoded        map[string]catalog.Record
	parsed         map[string]trust.Secrets // by text
	begun          time.Time
	result         Result
}

// ending is when a fault ends.
type ending struct {
	at  time.Time
	end func()
}

func newCluster(course Course, base string, mounts bool, log *slog.Logger) (*cluster, error) {
	c := &cluster{
		base: base, mounts: mounts, log: log, net: p2ptest.NewNetwork(course.Seed), decoded: map[string]catalog.Record{}, parsed: map[string]trust.Secrets{},
		begun: time.Now(), result: Result{Counts: map[string]int{}}, own: map[int]bool{}, touched: map[string]bool{}, graves: map[string]catalog.Record{}, builds: course.Seed << 20,
	}
	for i := range course.Nodes {
		m := c.newMachine(fmt.Sprintf("n%d", i), i, fmt.Sprintf("10.0.0.%d", 1+i))
		var err error
		if m.dir, err = m.newDisk(); err != nil {
			return nil, err
		}
		c.machines = append(c.machines, m)
	}
	return c, nil
}

func (c *cluster) newMachine(name string, index int, ip string) *machine {
	return &machine{
		c: c, name: name, index: index, host: c.net.Host(ip),
		last: map[string]catalog.Record{}, tampered: map[string]bool{}, rotten: map[string]bool{}, hand: hands{}, kept: map[string]keptImage{},
	}
}

// secrets are what the secret file of every host says now. A rotation has three steps:
// accept the new one, use it, accept the old one no more.
func (c *cluster) secrets() trust.Secrets {
	k := c.rotation / 3
	word := func(i int) string {
		return fmt.Sprintf("4f1c2b7d9e8a6035c4d2e1f0a9b8c7d6 secret %d of the simulation", i)
	}
	text := word(k)
	switch c.rotation % 3 {
	case 1:
		text = word(k) + "\n" + word(k+1)
	case 2:
		text = word(k+1) + "\n" + word(k)
	}
	return c.parse(text)
}

// parse is trust.ParseSecrets, whose slow hash is most of what a course would cost: once
// for each text.
func (c *cluster) parse(text string) trust.Secrets {
	if s, ok := c.parsed[text]; ok {
		return s
	}
	s, err := trust.ParseSecrets([]byte(text))
	if err != nil {
		panic(err) // programmer error
	}
	c.parsed[text] = s
	return s
}

// maxViolations are told of one course: what follows from the first ones is noise.
const maxViolations = 3

// violation notes that an invariant does not hold.
func (c *cluster) violation(format string, args ...any) {
	text := fmt.Sprintf("%s: ", time.Since(c.begun).Round(time.Millisecond)) + fmt.Sprintf(format, args...)
	c.log.Error("VIOLATION", "text", text)
	if len(c.result.Violations) >= maxViolations {
		return
	}
	c.result.Violations = append(c.result.Violations, text)
}

// run goes through a course; it ends with the first round that does not converge.
func (c *cluster) run(course Course) {
	for _, m := range c.machines {
		if err := m.start(); err != nil {
			c.violation("%s does not start: %v", m.name, err)
			return
		}
	}
	time.Sleep(2 * time.Second)
	for k, round := range course.Rounds {
		begun := time.Now()
		for _, e := range round {
			c.advance(begun.Add(time.Duration(e.At) * time.Millisecond))
			if len(c.result.Violations) > 0 {
				return
			}
			c.result.Begun++
			c.apply(e)
		}
		c.advance(begun.Add(roundLength))
		c.quiet(k)
		if len(c.result.Violations) > 0 {
			return
		}
	}
}

// stop ends everything and waits for it.
func (c *cluster) stop() {
	c.endAll() // where a violation cut a round off
	for _, m := range c.machines {
		if m.up {
			if err := m.leave(); err != nil {
				c.violation("%v", err)
			}
		}
	}
	c.work.Wait()
	c.zombies.Wait()
	c.result.Virtual = time.Since(c.begun)
	time.Sleep(5 * time.Minute) // memberlist's timers and goroutines end by their deadlines
	if open := openFiles(c.base); len(open) > 0 {
		c.violation("files are open after everything was closed: %v", open)
	}
	if left := goroutinesLeft(); left != "" {
		c.violation("goroutines are left after everything was closed:\n%s", left)
	}
	for _, m := range c.machines {
		m.dropDisk(m.dir)
	}
}

// goroutinesLeft are those of seeder and of memberlist but for this one and those of
// the test itself.
func goroutinesLeft() string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for i, g := range strings.Split(string(buf), "\n\n") {
		ours := strings.Contains(g, "seeder/p2p") || strings.Contains(g, "seeder/store") || strings.Contains(g, "memberlist")
		if i > 0 && ours && !strings.Contains(g, "go-events.(*Broadcaster).run") {
			left = append(left, g)
		}
	}
	return strings.Join(left[:min(len(left), 5)], "\n\n")
}

// openFiles are the files below dir that this process has open.
func openFiles(dir string) (out []string) {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		// containerd's content store tries fs-verity when it is opened and leaves that file
		// to the garbage collector (internal/fsverity, Enable: no Close).
		if strings.Contains(target, "/.fsverity-check-") {
			continue
		}
		if rel, rerr := filepath.Rel(dir, target); err == nil && rerr == nil && filepath.IsLocal(rel) {
			out = append(out, rel)
		}
	}
	return out
}

// advance lets time pass until at, ends the faults whose time has come, and looks.
func (c *cluster) advance(at time.Time) {
	for {
		slices.SortStableFunc(c.ends, func(a, b ending) int { return a.at.Compare(b.at) })
		if len(c.ends) == 0 || c.ends[0].at.After(at) {
			break
		}
		next := c.ends[0]
		c.ends = c.ends[1:]
		c.sleepUntil(next.at)
		next.end()
	}
	c.sleepUntil(at)
	c.look()
}

// sleepUntil sleeps in small steps, so that the times of files are those of their
// second and machines that stopped in a call crash soon.
func (c *cluster) sleepUntil(at time.Time) {
	for {
		c.crashStopped()
		left := time.Until(at)
		if left <= 0 {
			return
		}
		time.Sleep(min(left, time.Second))
		now := time.Now()
		for _, m := range c.machines {
			m.date(now)
		}
	}
}

// crashStopped crashes the machines that have come to the call at which they stop.
func (c *cluster) crashStopped() {
	for _, m := range c.machines {
		if !m.up {
			continue
		}
		select {
		case <-m.store.stopped:
			c.result.Counts["crash in a call"]++
			c.crashFor(m, 2*time.Second)
		default:
		}
	}
}

// crashFor crashes m and starts it again after d.
func (c *cluster) crashFor(m *machine, d time.Duration) {
	if err := m.crash(); err != nil {
		c.violation("%v", err)
		return
	}
	c.startAfter(m, d)
}

func (c *cluster) startAfter(m *machine, d time.Duration) {
	c.ends = append(c.ends, ending{time.Now().Add(d), func() {
		if m.up {
			return
		}
		if err := m.start(); err != nil {
			c.log.Warn("start failed; it is tried again", "host", m.name, "err", err)
			c.startAfter(m, 5*time.Second)
		}
	}})
}

// endAll ends the faults that are under way. A machine that has come to the call at which
// it stops, and was not looked at since, crashes now: later nobody would start it again.
func (c *cluster) endAll() {
	ends := c.ends
	c.ends = nil
	for _, e := range ends {
		e.end()
	}
	c.crashStopped()
	c.net.Heal()
}

// apply makes an event happen, where it can, and counts it.
func (c *cluster) apply(e Event) {
	k := kindOf(e.Kind)
	end, ok := k.begin(c, c.machines[e.Node], e)
	c.log.Info("EVENT", "event", e.String(), "applied", ok)
	if !ok {
		return
	}
	if !k.counted {
		c.result.Counts[k.name]++
	}
	if end != nil {
		c.ends = append(c.ends, ending{time.Now().Add(time.Duration(e.For) * time.Millisecond), end})
	}
}

// operate does what an operator asks for, beside everything else.
func (c *cluster) operate(m *machine, what string, do func(ctx context.Context, s *faultyStore, n *p2p.Node) error) {
	s, n := m.store, m.node
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandBound)
		defer cancel()
		err := s.gate(ctx, what)
		if err == nil {
			err = do(ctx, s, n)
		}
		c.log.Info("OPERATOR", "host", m.name, "did", what, "err", err)
	})
}

// commandBound is how long an operator's command may take.
const commandBound = time.Minute

// poll reads the catalogs of the machines that run, and holds each to what it said
// before: a catalog never goes back.
func (c *cluster) poll() {
	for _, m := range c.machines {
		if !m.up {
			continue
		}
		now, err := c.catalogOf(m)
		if err != nil {
			c.violation("harness: the catalog of %s: %v", m.name, err)
			continue
		}
		for ref, old := range m.last {
			rec, ok := now[ref]
			switch {
			case !ok && !isOld(old) && !c.buried(old):
				c.violation("%s has lost version %d of %s", m.name, old.Announcement().Version, ref)
			case ok && catalog.Newer(old, rec):
				c.violation("%s went back from version %d of %s to %d", m.name, old.Announcement().Version, ref, rec.Announcement().Version)
			}
		}
		m.last = now
	}
}

// isOld reports whether r is a withdrawal that is no part of the catalog any more.
func isOld(r catalog.Record) bool {
	a := r.Announcement()
	return a.Withdrawn && time.Since(a.AnnouncedAt) > 30*24*time.Hour
}

// buried reports whether rec was withdrawn so long ago that no catalog says so.
func (c *cluster) buried(rec catalog.Record) bool {
	grave, ok := c.graves[rec.Announcement().Reference]
	return ok && isOld(grave) && catalog.Newer(grave, rec)
}

func (c *cluster) catalogOf(m *machine) (map[string]catalog.Record, error) {
	out := map[string]catalog.Record{}
	for _, b := range m.node.Records() {
		rec, known := c.decoded[string(b)]
		if !known {
			var err error
			if rec, err = catalog.Decode(b); err != nil {
				return nil, err
			}
			c.decoded[string(b)] = rec
			c.result.Published++
		}
		a := rec.Announcement()
		if grave, ok := c.graves[a.Reference]; a.Withdrawn && (!ok || catalog.Newer(rec, grave)) {
			c.graves[a.Reference] = rec
		}
		if !isOld(rec) {
			out[rec.Announcement().Reference] = rec
		}
	}
	return out, nil
}

// newest are the records that have to be everywhere in the end: of all that any
// catalog was found to have, and did not lose to a fault, those that win.
func (c *cluster) newest() map[string]catalog.Record {
	out := map[string]catalog.Record{}
	for _, m := range c.machines {
		for ref, rec := range m.last {
			if c.buried(rec) {
				continue // a host that was away is told that it was withdrawn
			}
			if old, ok := out[ref]; !ok || catalog.Newer(rec, old) {
				out[ref] = rec
			}
		}
	}
	return out
}

func (c *cluster) running() (out []*machine) {
	for _, m := range c.machines {
		if m.up {
			out = append(out, m)
		}
	}
	return out
}

// refs are the references that operators use, in order.
func refs() []string {
	return []string{"docker.io/library/web:1", "docker.io/library/web:2", "docker.io/library/api:latest", "docker.io/library/job:latest"}
}

func sortedRefs[V any](m map[string]V) []string {
	var out []string
	for ref := range m {
		out = append(out, ref)
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}
