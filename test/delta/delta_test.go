package delta

import (
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"seeder/store/chunk"
	"seeder/store/delta"
)

func goGzip(w io.Writer, r io.Reader) error {
	z := stdgzip.NewWriter(w)
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	return z.Close()
}

// asToday is what a layer takes as chunks do without deltas: zstd where it shrinks.
func asToday(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s, err := f.Stat()
	if err != nil {
		return 0, err
	}
	codec, n := chunk.NewCodec(), int64(0)
	raw, dst := make([]byte, chunk.SizeFor(s.Size())), []byte(nil)
	for {
		k, err := io.ReadFull(f, raw)
		if k == 0 {
			return n, nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return 0, err
		}
		_, payload, err := codec.Encode(dst, raw[:k], chunk.Fast, false)
		if err != nil {
			return 0, err
		}
		n += int64(len(payload))
	}
}

// table collects the rows, and writes them to BENCH_DELTA_REPORT after each.
type table struct{ rows []string }

func (b *table) add(t *testing.T, columns ...any) {
	var s []string
	for _, c := range columns { // one may be what a tool has said
		s = append(s, strings.NewReplacer("\n", " ", "|", "\\|").Replace(fmt.Sprint(c)))
	}
	row := "| " + strings.Join(s, " | ") + " |"
	b.rows = append(b.rows, row)
	t.Log(row)
	if err := b.write(os.Getenv("BENCH_DELTA_REPORT")); err != nil {
		t.Fatal(err)
	}
}

const (
	tableBegin = "<!-- begin of what make bench-delta writes -->\n"
	tableEnd   = "<!-- end of what make bench-delta writes -->"
	tableHeads = "| pair | packed by | tar | layer | sent today | delta | share | encode | of tar | rebuild | of tar | peak RSS |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)

// write puts the table in its place in the file path, or makes a file of it.
func (b *table) write(path string) error {
	if path == "" {
		return nil
	}
	page, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		page, err = []byte(tableBegin+tableEnd+"\n"), nil
	}
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(page), tableBegin)
	_, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", path)
	}
	return os.WriteFile(path, []byte(head+tableBegin+tableHeads+strings.Join(b.rows, "\n")+"\n"+tableEnd+tail), 0o644)
}

// TestTables: the report keeps what is around the table, and a new file has the table alone.
func TestTables(t *testing.T) {
	page := filepath.Join(t.TempDir(), "deltas.md")
	t.Setenv("BENCH_DELTA_REPORT", page)
	var b table
	b.add(t, "a pair", "not measured: git: exit status 128:\nno | such")
	want := tableBegin + tableHeads + "| a pair | not measured: git: exit status 128: no \\| such |\n" + tableEnd + "\n"
	if got, err := os.ReadFile(page); err != nil || string(got) != want {
		t.Errorf("a new file has %q, %v; want %q", got, err, want)
	}
	if err := os.WriteFile(page, []byte("before\n"+want+"behind\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.row(t, "another", "plain", 2e6, 1e6, 5e5, measured{delta: 1e4})
	if got, err := os.ReadFile(page); err != nil || !strings.HasPrefix(string(got), "before\n"+strings.TrimSuffix(want, tableEnd+"\n")+"| another | plain | 2.0 MB | 1.0 MB | 0.5 MB | 0.010 MB | 2.00 % |") ||
		!strings.HasSuffix(string(got), tableEnd+"\nbehind\n") || strings.Count(string(got), tableBegin) != 1 {
		t.Errorf("a page around it has %q, %v", got, err)
	}
	if err := os.WriteFile(page, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.write(page); err == nil {
		t.Error("a page without a place for the table was written")
	}
}

func (b *table) row(t *testing.T, pair, packing string, tar, layer, today int64, m measured) {
	mb := func(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
	b.add(t, pair, packing, mb(tar), mb(layer), mb(today), fmt.Sprintf("%.3f MB", float64(m.delta)/1e6), fmt.Sprintf("%.2f %%", 100*float64(m.delta)/float64(today)),
		fmt.Sprintf("%.2f s", m.encode.cpu.Seconds()), fmt.Sprintf("%.0f MB/s", m.encode.mbs(tar)), fmt.Sprintf("%.2f s", m.decode.cpu.Seconds()), fmt.Sprintf("%.0f MB/s", m.decode.mbs(tar)),
		fmt.Sprintf("%.0f, %.0f MB", float64(m.encode.rss)/1e6, float64(m.decode.rss)/1e6))
}

// TestBenchDelta is `make bench-delta`.
func TestBenchDelta(t *testing.T) {
	if os.Getenv("BENCH_DELTA") == "" {
		t.Skip("BENCH_DELTA=1 is not set; make bench-delta sets it")
	}
	most := int64(60)
	if s := os.Getenv("BENCH_DELTA_MB"); s != "" {
		var err error
		if most, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	var rows table
	for _, p := range pairs(most * 1e6) {
		t.Run(p.name, func(t *testing.T) {
			old, now, err := p.make(t, t.TempDir())
			if err != nil {
				rows.add(t, p.name, "not measured: "+err.Error(), "–", "–", "–", "–", "–", "–", "–", "–", "–", "–")
				return
			}
			for _, k := range packings() {
				rows.pack(t, p.name, k, old, now)
			}
		})
	}
	big := int64(5000)
	if s := os.Getenv("BENCH_DELTA_BIG_MB"); s != "" {
		var err error
		if big, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if big > 0 {
		rows.big(t, big*1e6)
	}
}

// pack measures a pair in one packing.
func (b *table) pack(t *testing.T, name string, k packing, old, now string) {
	dir := t.TempDir()
	base, target := filepath.Join(dir, "base"), filepath.Join(dir, "target")
	for _, side := range [][2]string{{old, base}, {now, target}} {
		if err := k.pack(t, side[0], side[1]); err != nil {
			b.add(t, name, k.name, "not measured: "+err.Error(), "–", "–", "–", "–", "–", "–", "–", "–", "–")
			return
		}
	}
	kind := delta.Deflate
	if k.name == "plain" {
		kind = delta.Bytes
	}
	m, err := measure(t, kind, base, target, sum(t, base), sum(t, target))
	if err != nil {
		t.Fatalf("%s, %s: %v", name, k.name, err)
	}
	today, err := asToday(target)
	if err != nil {
		t.Fatal(err)
	}
	b.row(t, name, k.name, size(t, now), size(t, target), today, m)
}

func size(t *testing.T, path string) int64 {
	s, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.Size()
}

// big is a layer whose tar has that many bytes, plain and as gzip of many members, which is
// made faster than of one and is read in the same way.
func (b *table) big(t *testing.T, bytes int64) {
	dir := t.TempDir()
	base, target := filepath.Join(dir, "base"), filepath.Join(dir, "target")
	for _, kind := range []delta.Kind{delta.Bytes, delta.Deflate} {
		for path, changed := range map[string]bool{base: false, target: true} {
			if err := writeMade(path, bytes, kind == delta.Deflate, changed); err != nil {
				t.Fatal(err)
			}
		}
		m, err := measure(t, kind, base, target, sum(t, base), sum(t, target))
		if err != nil {
			t.Fatalf("%d bytes, %s: %v", bytes, kind, err)
		}
		today, err := asToday(target)
		if err != nil {
			t.Fatal(err)
		}
		b.row(t, "one large layer, 1 % of it new", map[delta.Kind]string{delta.Bytes: "plain", delta.Deflate: "gzip -1"}[kind], bytes, size(t, target), today, m)
	}
}

// writeMade writes a layer of MiBs that are made up: a quarter of each does not compress, the
// rest does. changed makes one in a hundred anew.
func writeMade(path string, bytes int64, packed, changed bool) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	phrases, mib := make([]byte, 1<<16), make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(phrases)
	var z *gzip.Writer
	for i := range bytes >> 20 {
		seed := [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}
		if changed && i%100 == 7 {
			seed[31] = 1
		}
		r := rand.NewChaCha8(seed)
		_, _ = r.Read(mib[:len(mib)/4])
		for at := len(mib) / 4; at < len(mib); at += 32 {
			copy(mib[at:], phrases[r.Uint64()%uint64(len(phrases)-32):][:32])
		}
		if !packed {
			if _, err := f.Write(mib); err != nil {
				return err
			}
			continue
		}
		if z == nil {
			if z, err = gzip.NewWriterLevel(f, gzip.BestSpeed); err != nil {
				return err
			}
		} else if i%64 == 0 {
			z.Reset(f)
		}
		if _, err := z.Write(mib); err != nil {
			return err
		}
		if i%64 == 63 || i == bytes>>20-1 {
			if err := z.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}
