package attack

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"seeder/p2p/report"
	"seeder/test/harness"
)

// An attack is something that a host on the network does to a daemon, and what it may
// cost. Each group of attacks is one file; groups names them.
type attack struct {
	name   string
	bound  string                      // what may come of it, for the table
	run    func(a *arena) (did string) // says what was done; it fails the test where it gets through
	before func(a *arena)              // gets ready, unwatched; nil: nothing
}

// groups are all attacks, in the order of the table.
func groups() [][]attack {
	return [][]attack{wallAttacks()}
}

const (
	// attackRSS is how much the daemon's memory may grow while it is attacked.
	attackRSS = 32 << 20
	// attackLines is how many lines of log one attack may cause.
	attackLines = 20
	// attackAnswer is how long the daemon may take to say who its members are, on a machine
	// where the slowest of ten such answers takes a fifth of that when nobody attacks.
	attackAnswer = time.Second
	// attackFiles is how many more files may be open while it is attacked.
	attackFiles = 700
)

// arena is where attacks happen: h1 is attacked, h2 is another member of its cluster,
// h3 is a host of the network without the secret.
type arena struct {
	*harness.Network
	t                         *testing.T
	victim, member, stranger  *harness.Host
	full                      bool // in full size, as `make attack` does
	sniffed                   func() [][]byte
	bounds                    harness.MemoryBounds // of the unit
	group                     *harness.MemoryGroup // in which the victim's daemon runs
	worst                     time.Duration
	rss, before               float64
	files, linesBefore, lines int
}

func newArena(t *testing.T) *arena {
	t.Helper()
	n := harness.NewNetwork(t, "")
	a := &arena{Network: n, t: t, full: os.Getenv("ATTACK") == "full"}
	a.victim, a.member, a.stranger = n.AddHost(harness.Newest), n.AddHost(harness.Newest), n.AddHost(harness.Newest)
	a.sniffed = sniffUDP(n, 7950)
	for _, h := range n.Hosts[:2] {
		h.Sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")
	}
	a.startBounded()
	a.member.StartSeeder(harness.StoreNode)
	a.victim.AwaitMembers(2)
	return a
}

// startBounded starts the victim's daemon within the memory that its unit gives it.
func (a *arena) startBounded() {
	a.t.Helper()
	a.bounds = harness.UnitMemory(a.t, "../../systemd/seeder.service")
	a.group = a.victim.BoundMemory(a.bounds)
	a.victim.Write("/etc/seeder/secret", harness.Secret+"\n", 0o600)
	a.victim.Seeder = a.victim.Start([]string{harness.StoreNode}, "sh", "-ec", a.group.Enter+`; exec "$0" daemon`, harness.SeederBin(a.t))
	harness.Eventually(a.t, 20*time.Second, "the daemon answers", func() error { return a.victim.Try(nil, "status") })
}

// wantWithin fails the test where the daemon came to the unit's bounds of memory.
func (a *arena) wantWithin() {
	a.t.Helper()
	if events := a.group.Events(); len(events) > 0 {
		a.t.Errorf("the daemon came to the unit's bounds of memory: %v", events)
	}
	if !a.group.Holds(a.victim.Seeder.PID) {
		a.t.Error("the daemon is not in its cgroup")
	}
	if peak := a.group.Peak(); peak > a.bounds.High {
		a.t.Errorf("the kernel counted %.1f MiB for the daemon, MemoryHigh is %d MiB", mib(peak), a.bounds.High>>20)
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// times is how often something is done: so often in full size, a tenth of it else.
func (a *arena) times(full int) int {
	if a.full {
		return full
	}
	return max(full/10, 1)
}

// calm is the slowest of ten answers while nobody attacks.
func (a *arena) calm() (worst time.Duration) {
	for range 10 {
		began := time.Now()
		if err := a.victim.Try(nil, "members"); err != nil {
			a.t.Fatal(err)
		}
		worst = max(worst, time.Since(began))
	}
	return worst
}

// watch asks the daemon who its members are, again and again, while fn runs, and notes
// what that costs it.
func (a *arena) watch(fn func() string) (did string) {
	pid := a.victim.Seeder.PID
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		a.t.Fatal(err) // the peak begins anew
	}
	a.before, a.linesBefore, a.worst, a.files = harness.ResidentBytes(a.t, pid), a.logLines(), 0, 0
	a.group.ResetPeak()
	filesBefore := countFiles(a.victim.Seeder)
	ctx, cancel := context.WithCancel(a.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for last := false; ; {
			began := time.Now()
			var m report.Members
			err := a.victim.Try(&m, "members")
			a.worst = max(a.worst, time.Since(began))
			if err != nil || alive(m) != 2 {
				a.t.Errorf("members under attack: %+v, %v", m.Members, err)
			}
			a.files = max(a.files, countFiles(a.victim.Seeder)-filesBefore)
			if last {
				return
			}
			select {
			case <-ctx.Done():
				last = true // and once afterwards
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	did = fn()
	cancel()
	wg.Wait()
	a.rss, a.lines = harness.PeakRSS(a.t, pid)-a.before, a.logLines()-a.linesBefore
	return did
}

func alive(m report.Members) (n int) {
	for _, one := range m.Members {
		if one.State == "alive" {
			n++
		}
	}
	return n
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func countFiles(d *harness.Daemon) (n int) {
	for _, k := range harness.OpenFiles(d) {
		n += k
	}
	return n
}

func (a *arena) logLines() int { return strings.Count(a.victim.Seeder.Log.String(), "\n") }

// TestAttack does each attack to a daemon that is one of two members, and holds what
// that costs it to its bounds. The daemon runs in a cgroup with the bounds of the unit. `make attack` does them in full size and prints a table.
func TestAttack(t *testing.T) {
	a := newArena(t)
	answer := max(attackAnswer, 5*a.calm())
	var table strings.Builder
	fmt.Fprintf(&table, "| attack | what may happen | what was done | slowest answer | memory | cgroup | open files | log |\n|---|---|---|---|---|---|---|---|\n")
	for _, group := range groups() {
		for _, one := range group {
			t.Run(one.name, func(t *testing.T) {
				a.t = t
				if one.before != nil {
					one.before(a)
				}
				did := a.watch(func() string { return one.run(a) })
				fmt.Fprintf(&table, "| %s | %s | %s | %d ms | +%.1f MiB | %.1f MiB | +%d | %s |\n",
					one.name, one.bound, did, a.worst.Milliseconds(), max(a.rss, 0)/(1<<20), mib(a.group.Peak()), a.files, plural(a.lines, "line"))
				if a.rss > attackRSS {
					t.Errorf("the daemon's memory grew by %.1f MiB, at most %d are meant", a.rss/(1<<20), attackRSS>>20)
				}
				if a.lines > attackLines {
					t.Errorf("%d lines of log, at most %d are meant:\n%s", a.lines, attackLines, a.victim.Seeder.Log.Tail(30))
				}
				if a.worst > answer {
					t.Errorf("the daemon took %s to say who its members are, at most %s are meant", a.worst, answer)
				}
				a.wantWithin()
				if a.files > attackFiles {
					t.Errorf("%d more files are open, at most %d are meant", a.files, attackFiles)
				}
				select {
				case <-a.victim.Seeder.Done:
					t.Fatalf("the daemon has ended:\n%s", a.victim.Seeder.Log.Tail(30))
				default:
				}
			})
		}
	}
	a.t = t
	a.victim.AwaitMembers(2)
	t.Logf("\n%s", table.String())
}

// TestAttackDocs: docs/security.md has the table of all attacks.
func TestAttackDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups() {
		for _, one := range group {
			if row := fmt.Sprintf("\n| %s | %s | ", one.name, one.bound); !strings.Contains(string(b), row) {
				t.Errorf("docs/security.md lacks the row of %q; `make attack` prints it", one.name)
			}
		}
	}
}
