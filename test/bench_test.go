package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

// The matrix of TestBench, one environment variable for each side. `make bench`
// has the defaults.
var (
	benchHosts  = benchList("BENCH_HOSTS", "2 4 8 16")
	benchRates  = benchList("BENCH_RATES", "100mbit 200mbit unshaped")
	benchImages = benchList("BENCH_IMAGES", "raw gzip random tiny huge")
	benchWays   = benchList("BENCH_WAYS", "seeder registry loop tls")
	benchRuns   = benchList("BENCH_RUNS", "5")
	benchMB     = benchList("BENCH_MB", "100")
	// benchAtOnce is how many runs of a rival share the machine, each on a network of
	// its own: on shaped links it waits for the link nearly all the time.
	benchAtOnce = benchList("BENCH_AT_ONCE", "1")
)

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

func benchList(name, fallback string) []string {
	if v := os.Getenv(name); v != "" {
		return strings.Fields(v)
	}
	return strings.Fields(fallback)
}

// sample is what one run of one way gave.
type sample struct {
	Way       string  `json:"way"` // seeder, registry, loop or tls
	AtOnce    int     `json:"at_once,omitempty"` // runs that shared the machine; 0: it was alone
	Hosts     int     `json:"hosts"`
	Rate      string  `json:"rate"` // of each link, both ways
	Image     string  `json:"image"`
	Bytes     int     `json:"bytes"`             // as stored
	Chunks    int     `json:"chunks"`            // seeder's
	Optimum   float64 `json:"optimum_s"`         // for the bytes that seeder put on one link; 0: unshaped
	Announced float64 `json:"announced_s"`       // the image was cut, summed and announced
	LastByte  float64 `json:"last_byte_s"`       // on all hosts; 0: not known
	Ready     float64 `json:"ready_s"`           // on all hosts
	Source    float64 `json:"source_sent_bytes"` // of the host that had the image
	Others    float64 `json:"others_sent_bytes"` // of each other host, mean
	Wire      float64 `json:"wire_bytes"`        // received by each other host, mean
	CPU       float64 `json:"cpu_s"`             // busy time of the whole machine; the mean of those that shared it
	Seeder    float64 `json:"seeder_cpu_s"`      // of seeder alone, on all hosts
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
				cell{out, image, rate, n}.bench(t, runs)
			}
		}
	}
}

// cell is a place in the matrix, and the file that gets its samples.
type cell struct {
	out, image, rate string
	hosts            int
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
		benchLoad(t, c.image, benchBytes(t)) // once, not in each of them
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
	load := benchLoad(t, kind, benchBytes(t))
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
	n := newNetwork(t, shape)
	for range hosts {
		h := n.addHost(newest)
		h.startContainerd()
		if way == "seeder" {
			h.startSeeder()
		}
	}
	first := n.hosts[0]
	if way == "seeder" {
		first.awaitMembers(hosts)
	}
	archive := load.archive(t, n.dir)
	first.ctr("images", "import", archive)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	ready()
	b.ready.Wait()
	before, busy := n.counters(), busySeconds(t)
	start := time.Now()
	switch way {
	case "seeder":
		for _, ref := range load.refs[1:] {
			first.run("announce", "--detach", ref)
		}
		first.run("announce", "--timeout", "20m", load.refs[0])
		first.run("wait", "--timeout", "20m")
		s.Announced, s.LastByte, s.Ready = n.fromLogs(t, load, start)
	case "registry":
		n.byRegistry(t, load)
		s.Ready = time.Since(start).Seconds()
	case "loop":
		n.byLoop(t, load)
		s.Ready = time.Since(start).Seconds()
	case "tls":
		n.byTLS(t, load)
		s.LastByte = time.Since(start).Seconds()
		s.Ready = s.LastByte
	default:
		t.Fatalf("no such way: %s", way)
	}
	after := n.counters()
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
		s.PeakRSS = max(s.PeakRSS, after[i].seederRSS)
	}
	if bits, err := strconv.ParseFloat(strings.TrimSuffix(rate, "mbit"), 64); err == nil {
		k := float64(s.Chunks)
		s.Optimum = (k + math.Ceil(math.Log2(float64(hosts))) - 1) / k * s.Wire * 8 / (bits * 1e6)
	}
	for _, h := range n.hosts[1:] {
		for _, ref := range load.refs {
			if img, err := h.imageStatus(fullName(ref)); way == "seeder" && (err != nil || img == nil) {
				t.Errorf("%s does not have %s: %v", h.name, ref, err)
			}
		}
	}
	return s
}

// fromLogs are the moments at which the images were announced, and at which the
// last host had every byte and was ready.
func (n *network) fromLogs(t *testing.T, load benchSet, start time.Time) (announced, lastByte, ready float64) {
	t.Helper()
	last := func(h *host, msg string) (latest float64) {
		found := map[string]bool{}
		for line := range strings.Lines(h.seeder.log.String()) {
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
				t.Errorf("%s never said %s of %s", h.name, msg, ref)
			}
		}
		return latest
	}
	for _, h := range n.hosts[1:] {
		lastByte, ready = max(lastByte, last(h, "fetched")), max(ready, last(h, "ready"))
	}
	return last(n.hosts[0], "announced"), lastByte, ready
}

// fullName is the reference as CRI writes it.
func fullName(ref string) string { return "docker.io/library/" + ref }

// counters of a host: what crossed its link, and what its seeder used.
type counters struct {
	sent, received float64 // bytes, headers included
	seederCPU      float64 // seconds
	seederRSS      float64 // peak, bytes
}

func (n *network) counters() []counters {
	var out []counters
	for _, h := range n.hosts {
		var c counters
		c.received, c.sent = h.linkBytes()
		if h.seeder != nil {
			c.seederCPU, c.seederRSS = cpuSeconds(n.t, h.seeder.pid), peakRSS(n.t, h.seeder.pid)
		}
		out = append(out, c)
	}
	return out
}

// linkBytes counts what came and went on the host's link.
func (h *host) linkBytes() (received, sent float64) {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", h.pid))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
			f := strings.Fields(rest)
			received, _ = strconv.ParseFloat(f[0], 64)
			sent, _ = strconv.ParseFloat(f[8], 64)
		}
	}
	return received, sent
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

func peakRSS(t *testing.T, pid int) float64 {
	t.Helper()
	return statusBytes(t, pid, "VmHWM:")
}

func residentBytes(t *testing.T, pid int) float64 {
	t.Helper()
	return statusBytes(t, pid, "VmRSS:")
}

func statusBytes(t *testing.T, pid int, field string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb * 1024
		}
	}
	return 0
}

// byLoop does what people do by hand: export once, copy to one host after the
// other, import there. The copy has no ssh to slow it down.
func (n *network) byLoop(t *testing.T, load benchSet) {
	t.Helper()
	first := n.hosts[0]
	file := first.path("/var/lib/tmp/image.tar")
	first.ctr(append([]string{"images", "export", "/var/lib/tmp/image.tar"}, load.names()...)...)
	for _, h := range n.hosts[1:] {
		if err := first.copyTo(h, file); err != nil {
			t.Fatal(err)
		}
		h.ctr("images", "import", "/var/lib/tmp/image.tar")
	}
}

// copyTo sends a file over the network to the same place of another host.
func (h *host) copyTo(to *host, file string) error {
	l := to.listen(to.address + ":9")
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		got <- func() error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			f, err := os.Create(to.path("/var/lib/tmp/image.tar"))
			if err != nil {
				return err
			}
			_, err = io.Copy(f, conn)
			return errors.Join(err, f.Close())
		}()
	}()
	conn, err := h.dial(l.Addr().String())
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	_, err = io.Copy(conn, f)
	return errors.Join(err, f.Close(), conn.Close(), <-got)
}

// byRegistry pushes to a registry on the first host, from which all others pull
// at once.
func (n *network) byRegistry(t *testing.T, load benchSet) {
	t.Helper()
	first := n.hosts[0]
	first.write("/etc/registry.yml", `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: "0.0.0.0:5000"}
`, 0o644)
	d := first.start(nil, "docker-registry", "serve", "/etc/registry.yml")
	defer func() { <-d.done }()
	defer d.cmd.Process.Kill()
	defer syscall.Kill(d.pid, syscall.SIGKILL)
	eventually(t, 20*time.Second, "the registry answers", func() error {
		conn, err := first.dial(first.address + ":5000")
		if err != nil {
			return err
		}
		return conn.Close()
	})
	remote := func(ref string) string { return first.address + ":5000/library/" + ref }
	for _, ref := range load.refs {
		first.ctr("images", "push", "--plain-http", remote(ref), fullName(ref))
	}
	var wg sync.WaitGroup
	errs := make([]error, len(n.hosts))
	for i, h := range n.hosts[1:] {
		wg.Go(func() {
			for _, ref := range load.refs {
				if out, err := h.ctrCmd("images", "pull", "--plain-http", remote(ref)).CombinedOutput(); err != nil {
					errs[i] = fmt.Errorf("pull on %s: %w: %s", h.name, err, out)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// byTLS moves the image's bytes to each other host and does nothing with them:
// HTTP/1.1 over TLS, four connections to each, as a measure of the machine.
func (n *network) byTLS(t *testing.T, load benchSet) {
	t.Helper()
	const conns = 4
	if load.content == nil {
		t.Fatal("tls has all bytes in memory: not with this image")
	}
	all := load.content()
	first := n.hosts[0]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	srv.Listener.Close()
	srv.Listener = first.listen(first.address + ":8443")
	srv.StartTLS()
	defer srv.Close()
	var wg sync.WaitGroup
	for _, h := range n.hosts[1:] {
		tr := srv.Client().Transport.(*http.Transport).Clone()
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return h.dial(first.address + ":8443") }
		tr.TLSClientConfig.ServerName = "example.com" // what the certificate is for
		tr.ReadBufferSize = 64 << 10
		for i := range conns {
			wg.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", len(all)*i/conns, len(all)*(i+1)/conns-1))
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10)); err != nil {
					t.Error(err)
				}
			})
		}
		defer tr.CloseIdleConnections()
	}
	wg.Wait()
}

// benchSet is one image or several to be moved.
type benchSet struct {
	refs    []string // short
	blobs   []int64  // their sizes
	archive func(t *testing.T, dir string) string
	content func() []byte // of all layers; nil where it does not go into memory
}

func (l benchSet) names() []string {
	var out []string
	for _, ref := range l.refs {
		out = append(out, fullName(ref))
	}
	return out
}

// setOf is a set of images in memory.
func setOf(imgs ...*image) benchSet {
	l := benchSet{}
	seen := map[digest.Digest]bool{}
	for _, img := range imgs {
		l.refs = append(l.refs, img.ref)
		for d, b := range img.blobs() {
			if !seen[d] {
				l.blobs = append(l.blobs, int64(len(b)))
			}
			seen[d] = true
		}
	}
	l.archive = func(t *testing.T, dir string) string { return dockerArchive(t, dir, imgs...) }
	l.content = func() []byte {
		var all [][]byte
		for _, img := range imgs {
			all = append(all, img.layers...)
		}
		return bytes.Join(all, nil)
	}
	return l
}

// benchLoads are made once: the files of this machine take a while to read.
var benchLoads sync.Map

// benchLoad makes an image of about so many bytes as stored: raw and gzip of this
// machine's programs and libraries in four layers, random of what does not
// compress. tiny are 100 images of 20 layers of a kilobyte each, huge has one
// layer of 4 GiB.
func benchLoad(t *testing.T, kind string, size int) benchSet {
	t.Helper()
	if l, ok := benchLoads.Load(kind); ok {
		return l.(benchSet)
	}
	var l benchSet
	switch kind {
	case "raw", "gzip":
		if kind == "gzip" {
			size *= 3
		}
		var layers [][]byte
		for _, files := range rootFiles(t, size, 4) {
			layers = append(layers, tarOf(t, files))
		}
		l = setOf(packImage(t, short, kind == "gzip", layers...))
	case "random":
		var layers [][]byte
		for i := range 4 {
			layers = append(layers, tarOf(t, map[string][]byte{fmt.Sprintf("noise-%d", i): noise(uint64(i), size/4)}))
		}
		l = setOf(packImage(t, short, false, layers...))
	case "tiny":
		var imgs []*image
		for i := range 100 {
			var layers [][]byte
			for k := range 20 {
				layers = append(layers, tarOf(t, map[string][]byte{fmt.Sprintf("tiny-%d", k): words(uint64(100*i+k), 1000)}))
			}
			imgs = append(imgs, packImage(t, fmt.Sprintf("tiny-%02d:latest", i), false, layers...))
		}
		l = setOf(imgs...)
	case "huge":
		l = hugeImage(t, 4<<30)
	default:
		t.Fatalf("no such image: %s", kind)
	}
	benchLoads.Store(kind, l)
	return l
}

// hugeImage has one layer with a file that does not compress.
func hugeImage(t *testing.T, size int64) benchSet {
	t.Helper()
	img := newStreamed(t, size, func() io.Reader { return rand.NewChaCha8([32]byte{1}) })
	archive := func(t *testing.T, dir string) string {
		t.Helper()
		f, err := os.CreateTemp(dir, "huge-*.tar")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(img.write(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	return benchSet{refs: []string{short}, blobs: []int64{img.layerBytes, int64(len(img.config)), 500}, archive: archive}
}

// rootFiles are files of this machine's /usr, as a root file system has them, in
// parts of equal size.
func rootFiles(t *testing.T, size, parts int) []map[string][]byte {
	t.Helper()
	out := []map[string][]byte{{}}
	total := 0
	enough := errors.New("enough")
	for _, dir := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil || info.Size() > int64(size)/8 {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			out[len(out)-1][strings.TrimPrefix(path, "/")] = b
			if total += len(b); total >= size {
				return enough
			}
			if total >= size*len(out)/parts {
				out = append(out, map[string][]byte{})
			}
			return nil
		})
		if errors.Is(err, enough) {
			return out
		}
	}
	t.Logf("this machine has only %d MB of files in /usr", total>>20)
	return out
}

// TestBenchReport writes docs/benchmarks.md from the samples of TestBench.
func TestBenchReport(t *testing.T) {
	in, out := os.Getenv("BENCH_OUT"), os.Getenv("BENCH_REPORT")
	if out == "" {
		t.Skip("writes the report of a benchmark; `make bench` runs it")
	}
	b, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]sample{}
	var keys []string
	for line := range bytes.Lines(b) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%s/%s/%d", s.Image, s.Rate, s.Hosts)
		if groups[key] == nil {
			keys = append(keys, key)
		}
		groups[key] = append(groups[key], s)
	}
	var w strings.Builder
	w.WriteString("| image | link | hosts | way | runs | last byte ÷ optimum | ready on all | ready ÷ seeder's | source sent ÷ W | other hosts sent ÷ W | CPU s | peak RSS |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, key := range keys {
		var ours []float64
		var wire float64
		for _, s := range groups[key] {
			if s.Way == "seeder" {
				ours, wire = append(ours, s.Ready), s.Wire
			}
		}
		for _, way := range []string{"seeder", "registry", "loop", "tls"} {
			var list []sample
			for _, s := range groups[key] {
				if s.Way == way {
					list = append(list, s)
				}
			}
			for _, s := range list {
				if d := math.Abs(float64(s.Bytes)/float64(list[0].Bytes) - 1); d > 0.1 {
					t.Fatalf("%s by %s: samples of %d and of %d bytes are in one row", key, way, list[0].Bytes, s.Bytes)
				}
			}
			if len(list) > 0 {
				w.WriteString(row(list, median(ours), wire))
			}
		}
	}
	page, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- begin of what make bench writes -->\n", "<!-- end of what make bench writes -->\n"
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks between which the table goes", out)
	}
	if err := os.WriteFile(out, []byte(head+begin+w.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// row is a line of the table: medians with the range.
func row(list []sample, seeder, wire float64) string {
	get := func(f func(sample) float64) []float64 {
		var out []float64
		for _, s := range list {
			out = append(out, f(s))
		}
		return out
	}
	s := list[0]
	lastByte := "–"
	if s.Way == "seeder" && s.Optimum > 0 {
		lastByte = spread(get(func(s sample) float64 { return s.LastByte / s.Optimum }), "%.2f")
	}
	rss := "–"
	if s.PeakRSS > 0 {
		rss = fmt.Sprintf("%.0f MB", median(get(func(s sample) float64 { return s.PeakRSS }))/1e6)
	}
	cpu := fmt.Sprintf("%.1f", median(get(func(s sample) float64 { return s.CPU })))
	runs := strconv.Itoa(len(list))
	if most := slices.MaxFunc(list, func(a, b sample) int { return a.AtOnce - b.AtOnce }).AtOnce; most > 1 {
		runs += fmt.Sprintf(", %d at once", most)
	}
	return fmt.Sprintf("| %s, %.0f MB | %s | %d | %s | %s | %s | %s s | %s | %s | %s | %s | %s |\n", s.Image, float64(s.Bytes)/1e6, s.Rate, s.Hosts, s.Way,
		runs, lastByte, spread(get(func(s sample) float64 { return s.Ready }), "%.1f"),
		spread(get(func(s sample) float64 { return s.Ready / seeder }), "%.2f"),
		spread(get(func(s sample) float64 { return s.Source / wire }), "%.2f"),
		spread(get(func(s sample) float64 { return s.Others / wire }), "%.2f"), cpu, rss)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// spread is the median and, where there are several, the range.
func spread(v []float64, format string) string {
	s := fmt.Sprintf(format, median(v))
	if len(v) > 1 {
		s += fmt.Sprintf(" ("+format+" … "+format+")", slices.Min(v), slices.Max(v))
	}
	return s
}
