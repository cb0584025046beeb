package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"seeder/store/chunk"
	"seeder/test/harness"
)

// The matrix of TestBench, one environment variable for each side. `make bench`
// has the defaults.
var (
	benchHosts  = harness.EnvList("BENCH_HOSTS", "2 3 4 8 16")
	benchRates  = harness.EnvList("BENCH_RATES", "100mbit 200mbit 1000mbit 2500mbit unshaped")
	benchImages = harness.EnvList("BENCH_IMAGES", "raw gzip random tiny huge")
	benchWays   = harness.EnvList("BENCH_WAYS", "seeder registry loop tls")
	benchRuns   = harness.EnvList("BENCH_RUNS", "5")
	benchMB     = harness.EnvList("BENCH_MB", "100")
	// benchAtOnce is how many runs of a rival share the machine, each on a network of
	// its own: on shaped links it waits for the link nearly all the time.
	// Each containerd takes one or two of fs.inotify.max_user_instances, mostly 128.
	benchAtOnce = harness.EnvList("BENCH_AT_ONCE", "1")
)

// benchWait is when a run counts as failed.
const benchWait = 20 * time.Minute

// leftOut says why a cell of the matrix is not measured, empty where it is.
func leftOut(image, rate, way string, hosts int) string {
	switch {
	case way == "tls" && (rate != "unshaped" || image == "huge"):
		return "tls is a measure of the machine, from memory"
	case image == "tiny" && rate != "unshaped":
		return "the link has no part in 5 MB"
	case image == "huge" && (rate != "unshaped" || hosts > 4):
		return "4 GiB are for the memory, not for the link; each host takes 13 GB of disk"
	}
	return ""
}

// sample is what one run of one way gave.
type sample struct {
	Way       string  `json:"way"`               // seeder, registry, loop or tls
	AtOnce    int     `json:"at_once,omitempty"` // runs that shared the machine; 0: it was alone
	Hosts     int     `json:"hosts"`
	Cores     int     `json:"cores,omitempty"` // of its own that each host has; 0: all hosts share all cores
	Rate      string  `json:"rate"`            // of each link, both ways
	Image     string  `json:"image"`
	Bytes     int     `json:"bytes"`             // as stored
	Chunks    int     `json:"chunks"`            // seeder's
	Optimum   float64 `json:"optimum_s"`         // for the bytes that seeder put on one link; 0: unshaped
	Announced float64 `json:"announced_s"`       // the image was cut, summed and announced
	LastByte  float64 `json:"last_byte_s"`       // on all hosts; 0: not known
	Ready     float64 `json:"ready_s"`           // on all hosts
	Done      float64 `json:"done_s,omitempty"`  // the command of seeder has returned
	Source    float64 `json:"source_sent_bytes"` // of the host that had the image
	Others    float64 `json:"others_sent_bytes"` // of each other host, mean
	Wire      float64 `json:"wire_bytes"`        // received by each other host, mean
	CPU       float64 `json:"cpu_s"`             // busy time of the whole machine; the mean of those that shared it
	Seeder    float64 `json:"seeder_cpu_s"`      // of seeder alone, on all hosts
	Daemons   float64 `json:"daemons_cpu_s"`     // of seeder or the registry, and of containerd, on all hosts
	PeakRSS   float64 `json:"peak_rss_bytes"`    // of a seeder, the largest
}

// TestBench measures how long an image of one host takes to all, by seeder and by
// what people do without it, in turns on the same machine.
func TestBench(t *testing.T) {
	out := os.Getenv("BENCH_OUT")
	if out == "" {
		t.Skip("a benchmark that takes many minutes; `make bench` runs it")
	}
	runs, err := strconv.Atoi(benchRuns[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range benchImages {
		for _, rate := range benchRates {
			for _, hosts := range benchHosts {
				n, err := strconv.Atoi(hosts)
				if err != nil {
					t.Fatal(err)
				}
				cell{out, image, rate, n, benchBytes(t)}.bench(t, runs)
			}
		}
	}
}

// cell is a place in the matrix, and the file that gets its samples.
type cell struct {
	out, image, rate string
	hosts, bytes     int
}

// bench lets the ways take turns.
func (c cell) bench(t *testing.T, runs int) {
	t.Helper()
	most := atOnce(t)
	for r := 0; r < runs; r += most {
		count := min(most, runs-r)
		for _, way := range benchWays {
			if way == "seeder" || c.rate == "unshaped" {
				for k := range count {
					c.run(t, way, r+k, 1)
				}
				continue
			}
			c.run(t, way, r, count)
		}
	}
}

// atOnce is how many runs of a rival are to share the machine.
func atOnce(t *testing.T) int {
	t.Helper()
	most, err := strconv.Atoi(benchAtOnce[0])
	if err != nil {
		t.Fatal(err)
	}
	allowed, err := strconv.Atoi(flag.Lookup("test.parallel").Value.String())
	if err != nil {
		t.Fatal(err)
	}
	if most < 1 || most > allowed {
		t.Fatalf("BENCH_AT_ONCE=%d: want 1 to %d, which is what -parallel allows", most, allowed)
	}
	return most
}

// benchBytes is about how large an image is.
func benchBytes(t *testing.T) int {
	t.Helper()
	mb, err := strconv.Atoi(benchMB[0])
	if err != nil {
		t.Fatal(err)
	}
	return mb << 20
}

// run measures a way so many times at once and returns when all are done.
func (c cell) run(t *testing.T, way string, first, count int) {
	t.Helper()
	t.Run(fmt.Sprintf("%s/%s/%d/%s", c.image, c.rate, c.hosts, way), func(t *testing.T) {
		if why := leftOut(c.image, c.rate, way, c.hosts); why != "" {
			t.Skip(why)
		}
		benchLoad(t, c.image, c.bytes) // once, not in each of them
		b := newBatch(count)
		for k := range count {
			t.Run(strconv.Itoa(first+k), func(t *testing.T) {
				if count > 1 {
					t.Parallel()
				}
				line, err := json.Marshal(c.measure(t, way, b))
				if err != nil {
					t.Fatal(err)
				}
				t.Log(string(line))
				if err := appendLine(c.out, line); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

// batch are runs that share the machine: none is measured while another is made
// ready or taken down.
type batch struct {
	runs        int
	ready, done sync.WaitGroup
	begun       atomic.Int32
}

// begin returns when a run's turn has come: the runs of a batch begin apart.
func (b *batch) begin(apart time.Duration) {
	b.ready.Wait()
	// Nothing is waited for but the time: how the runs lie beside each other is measured.
	time.Sleep(time.Duration(b.begun.Add(1)-1) * apart)
}

// apart is how long after one run of a batch the next one begins, so that not all need
// the cores at the same time. The loop does so after the copy to each host: the runs share
// the time that one copy takes. The pulls from a registry do so most at their end.
func (c cell) apart(t *testing.T, way string, runs int) time.Duration {
	t.Helper()
	mbit, err := strconv.ParseFloat(strings.TrimSuffix(c.rate, "mbit"), 64)
	if err != nil || way != "loop" {
		return 17 * time.Second * time.Duration(c.bytes>>20) / 300
	}
	copying := float64(c.bytes) * 8 / (mbit * 1e6)
	return time.Duration(copying / float64(runs) * float64(time.Second))
}

func newBatch(runs int) *batch {
	b := &batch{runs: runs}
	b.ready.Add(runs)
	b.done.Add(runs)
	return b
}

func appendLine(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// measure makes a network, gives the image to the first host, and takes the time
// until all have it.
func (c cell) measure(t *testing.T, way string, b *batch) sample {
	t.Helper()
	ready, done := sync.OnceFunc(b.ready.Done), sync.OnceFunc(b.done.Done)
	defer done() // a run that fails keeps no other waiting
	defer ready()
	hosts, rate, kind := c.hosts, c.rate, c.image
	load := benchLoad(t, kind, c.bytes)
	s := sample{Way: way, Hosts: hosts, Rate: rate, Image: kind}
	if b.runs > 1 {
		s.AtOnce = b.runs
	}
	for _, size := range load.blobs {
		s.Bytes += int(size)
		s.Chunks += chunk.Chunks(size, chunk.SizeFor(size))
	}
	shape := rate
	if rate == "unshaped" {
		shape = ""
	}
	n := harness.NewNetwork(t, shape)
	// With enough cores, what a host does costs no other one time. All ways have the same
	// cores, since they are compared, so none has where runs share the machine.
	cores := allCores(t)
	if benchAtOnce[0] == "1" {
		s.Cores = len(cores) / hosts
	}
	for i := range hosts {
		h := n.AddHost(harness.Newest)
		h.Cores = strings.Join(cores[i*s.Cores:(i+1)*s.Cores], ",") // none: all
		h.StartContainerd()
		if way == "seeder" {
			h.StartSeeder()
		}
	}
	first := n.Hosts[0]
	if way == "seeder" {
		first.AwaitMembers(hosts)
	}
	archive := load.archive(t, n.Dir)
	first.Ctr("images", "import", archive)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	ready()
	b.begin(c.apart(t, way, b.runs))
	before, busy := countersOf(n), busySeconds(t)
	start := time.Now()
	switch way {
	case "seeder":
		// 2,000 layers on sixteen hosts take minutes.
		first.RunWithin(benchWait+time.Minute, append([]string{"announce", "--timeout", benchWait.String()}, load.refs...)...)
		s.Done = time.Since(start).Seconds()
		first.RunWithin(benchWait+time.Minute, "wait", "--timeout", benchWait.String())
		s.Announced, s.LastByte, s.Ready = fromLogs(n, t, load, start)
	case "registry":
		s.Daemons = byRegistry(n, t, load)
		s.Ready = time.Since(start).Seconds()
	case "loop":
		byLoop(n, t, load)
		s.Ready = time.Since(start).Seconds()
	case "tls":
		byTLS(n, t, load)
		s.LastByte = time.Since(start).Seconds()
		s.Ready = s.LastByte
	default:
		t.Fatalf("no such way: %s", way)
	}
	after := countersOf(n)
	s.CPU = (busySeconds(t) - busy) / float64(b.runs)
	done()
	b.done.Wait()
	for i := range after {
		sent, received := after[i].sent-before[i].sent, after[i].received-before[i].received
		if i == 0 {
			s.Source = sent
		} else {
			s.Others += sent / float64(hosts-1)
			s.Wire += received / float64(hosts-1)
		}
		s.Seeder += after[i].seederCPU - before[i].seederCPU
		s.Daemons += after[i].containerdCPU - before[i].containerdCPU
		s.PeakRSS = max(s.PeakRSS, after[i].seederRSS)
	}
	s.Daemons += s.Seeder
	if bits, err := strconv.ParseFloat(strings.TrimSuffix(rate, "mbit"), 64); err == nil {
		k := float64(s.Chunks)
		s.Optimum = (k + math.Ceil(math.Log2(float64(hosts))) - 1) / k * s.Wire * 8 / (bits * 1e6)
	}
	for _, h := range n.Hosts[1:] {
		for _, ref := range load.refs {
			if img, err := h.ImageStatus(fullName(ref)); way == "seeder" && (err != nil || img == nil) {
				t.Errorf("%s does not have %s: %v", h.Name, ref, err)
			}
		}
	}
	return s
}

// allCores are the numbers of the cores that this process may use.
func allCores(t *testing.T) (out []string) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			out = append(out, strconv.Itoa(i))
		}
	}
	return out
}

// fromLogs are the moments at which the images were announced, and at which the
// last host had every byte and was ready.
func fromLogs(n *harness.Network, t *testing.T, load benchSet, start time.Time) (announced, lastByte, ready float64) {
	t.Helper()
	last := func(h *harness.Host, msg string) (latest float64) {
		found := map[string]bool{}
		for line := range strings.Lines(h.Seeder.Log.String()) {
			if !strings.Contains(line, " msg="+msg+" ") {
				continue
			}
			_, ref, _ := strings.Cut(line, " ref=")
			ref, _, _ = strings.Cut(ref, " ")
			if ref == "" {
				continue // the daemon says ready, too
			}
			found[ref] = true
			stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			when, err := time.Parse(time.RFC3339Nano, stamp)
			if err != nil {
				t.Fatal(err)
			}
			latest = max(latest, when.Sub(start).Seconds())
		}
		for _, ref := range load.refs {
			if !found[fullName(ref)] {
				t.Errorf("%s never said %s of %s", h.Name, msg, ref)
			}
		}
		return latest
	}
	for _, h := range n.Hosts[1:] {
		lastByte, ready = max(lastByte, last(h, "fetched")), max(ready, last(h, "ready"))
	}
	return last(n.Hosts[0], "announced"), lastByte, ready
}

// fullName is the reference as CRI writes it.
func fullName(ref string) string { return "docker.io/library/" + ref }

// counters of a host: what crossed its link, and what its seeder used.
type counters struct {
	sent, received float64 // bytes, headers included
	seederCPU      float64 // seconds
	containerdCPU  float64
	seederRSS      float64 // peak, bytes
}

func countersOf(n *harness.Network) []counters {
	var out []counters
	for _, h := range n.Hosts {
		var c counters
		c.received, c.sent = harness.LinkBytes(h)
		c.containerdCPU = cpuSeconds(n.T, h.Containerd.PID)
		if h.Seeder != nil {
			c.seederCPU, c.seederRSS = cpuSeconds(n.T, h.Seeder.PID), harness.PeakRSS(n.T, h.Seeder.PID)
		}
		out = append(out, c)
	}
	return out
}

// cpuSeconds is what a process and its ended children have used.
func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	var ticks float64
	for _, s := range f[11:15] { // utime, stime, cutime, cstime
		v, _ := strconv.ParseFloat(s, 64)
		ticks += v
	}
	return ticks / 100 // USER_HZ
}

// busySeconds is for how long the cores of this machine have not been idle.
func busySeconds(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	var ticks float64
	for i, s := range strings.Fields(strings.SplitN(string(b), "\n", 2)[0])[1:] {
		if v, _ := strconv.ParseFloat(s, 64); i < 8 && i != 3 && i != 4 && i != 7 { // idle, iowait, steal
			ticks += v
		}
	}
	return ticks / 100
}
