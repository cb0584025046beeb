package dst

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The environment of TestMutations, and of the program that it builds.
const (
	envMutations = "DST_MUTATIONS" // names, or all
	childMutated = "DST_MUTATED"   // what is broken in this process
)

// mutation is the product broken on purpose, and a course that a check has to end.
type mutation struct {
	name, file string // of the repository
	old, new   string // text that is there once; mutated(name) in it says whether it is broken
	course     func() Course
	want       string // in the violation
}

// mutations are one for each check at least.
func mutations() []mutation {
	return []mutation{
		{"scan-forgets", "store/stage/blob.go",
			"	for b.end+headerBytes <= st.Size() {", "	for !mutated(\"scan-forgets\") && b.end+headerBytes <= st.Size() {",
			halfArrived, "again, which it had verified before it stopped"},
		{"no-download-limit", "p2p/wire/conn.go",
			"} else if werr := wait(c.ctx, c.limiter.down, n); werr", "} else if mutated(\"no-download-limit\") {\n\t\t} else if werr := wait(c.ctx, c.limiter.down, n); werr",
			limited(1), "n1 has received"},
		{"no-upload-limit", "p2p/wire/conn.go",
			"	if !c.bulkOut.Load() {", "	if mutated(\"no-upload-limit\") || !c.bulkOut.Load() {",
			limited(0), "n0 has sent"},
		{"merge-not-written", "p2p/catalog/file.go",
			"		for ref, r := range records {", "		if mutated(\"merge-not-written\") {\n\t\t\trecords = nil\n\t\t}\n\t\tfor ref, r := range records {",
			cutOffCrash, "n1 has lost version 1"},
		{"neither-wins", "p2p/catalog/record.go",
			"	case !a.ann.AnnouncedAt.Equal(b.ann.AnnouncedAt):", "	case mutated(\"neither-wins\"):\n\t\treturn false\n\tcase !a.ann.AnnouncedAt.Equal(b.ann.AnnouncedAt):",
			split, "wins"},
		{"ingests-stay", "store/tidy.go",
			"			if locks != &s.locks.imports || !keep[target]", "			if mutated(\"ingests-stay\") || mutated(\"leases-stay\") {\n\t\t\t} else if locks != &s.locks.imports || !keep[target]",
			replacedWhileDown, "/embedded/content/ingest/"},
		{"leases-stay", "store/import.go",
			"	return release(ctx)", "	if mutated(\"leases-stay\") {\n\t\treturn nil\n\t}\n\treturn release(ctx)",
			split, "the lease import-"},
		{"frames-stay", "store/stage/stage.go",
			"func (d *Dir) Drop(names ...string) (bytes int64) {", "func (d *Dir) Drop(names ...string) (bytes int64) {\n\tif mutated(\"frames-stay\") {\n\t\treturn 0\n\t}",
			replacedWhileDown, "/stage/"},
		{"named-too-early", "store/import.go",
			"			if !needed || r.committed.has(", "			if mutated(\"named-too-early\") && artifact.IsLayer(b.info.MediaType) || !needed || r.committed.has(",
			halfArrived, "which is not complete"},
		{"cache-stays", "store/stage/cache.go",
			"	goal := Use{min(", "	if mutated(\"cache-stays\") {\n\t\tneed, limit = Use{}, held\n\t}\n\tgoal := Use{min(",
			fullWithFrames, "bytes of frames since"},
		{"purge-ignored", "p2p/converge/keep.go",
			"	bytes, err := l.cfg.Remover.Remove(ctx, a.Reference)", "	bytes, err := int64(0), error(nil)\n\tif !mutated(\"purge-ignored\") {\n\t\tbytes, err = l.cfg.Remover.Remove(ctx, a.Reference)\n\t}",
			purged, "which was purged"},
		{"gaps-unseen", "store/ctrd/checks.go",
			"		if errors.As(err, &missing) {", "		if mutated(\"gaps-unseen\") {\n\t\t\treturn true, \"\", nil\n\t\t}\n\t\tif errors.As(err, &missing) {",
			blobGone, ", but: "},
		{"finding-forgotten", "store/ctrd/checks.go",
			"	if !known || seen.unstacked ||", "	if !known && mutated(\"finding-forgotten\") {\n\t\treturn true\n\t}\n\tif !known || seen.unstacked ||",
			foundWhileItLied, ", but: "},
		{"never-joins", "p2p/gossip/join.go",
			"			err = j.join(ctx, targets)", "			if !mutated(\"never-joins\") {\n\t\t\t\terr = j.join(ctx, targets)\n\t\t\t}",
			split, "alive members of"},
		{"spins", "p2p/converge/loop.go",
			"	timer := time.NewTimer(0)", "	if mutated(\"spins\") {\n\t\tgo func() {\n\t\t\tfor ctx.Err() == nil {\n\t\t\t\ttime.Sleep(20 * time.Millisecond)\n\t\t\t\t_, _ = l.cfg.Store.List(ctx)\n\t\t\t}\n\t\t}()\n\t}\n\ttimer := time.NewTimer(0)",
			split, "in which nothing happened"},
		{"files-stay-open", "store/stage/blob.go",
			"	if h.refs.Add(-1) == 0 {", "	if mutated(\"files-stay-open\") {\n\t\thoard = append(hoard, h)\n\t} else if h.refs.Add(-1) == 0 {",
			halfArrived, "files are open after everything was closed"},
		{"memory-stays", "p2p/janitor.go",
			"			j.images.Sweep(now)", "			if mutated(\"memory-stays\") {\n\t\t\t\thoard = append(hoard, make([]byte, 200<<20))\n\t\t\t}\n\t\t\tj.images.Sweep(now)",
			lookedAt, "bytes of memory are in use"},
		{"does-not-stop", "p2p/janitor.go",
			"			return\n		case now := <-tick.C:", "			if mutated(\"does-not-stop\") {\n\t\t\t\ttime.Sleep(time.Minute)\n\t\t\t}\n\t\t\treturn\n\t\tcase now := <-tick.C:",
			split, "had not closed"},
		{"goroutine-stays", "p2p/janitor.go",
			"	defer tick.Stop()", "	defer tick.Stop()\n\tif mutated(\"goroutine-stays\") {\n\t\tgo func() { <-time.After(100 * time.Hour) }()\n\t}",
			split, "goroutines are left"},
	}
}

// mutatedSource is a file that each changed package gets besides.
const mutatedSource = "package %s\n\nimport \"os\"\n\nvar hoard []any\n\nfunc mutated(name string) bool { return os.Getenv(%q) == name }\n"

// The courses. Node 0 announces the first build, with a layer of many chunks.

func at(ms int64, kind string, node, peer int, forMS int64, arg uint64) Event {
	return Event{At: ms, Kind: kind, Node: node, Peer: peer, For: forMS, Arg: arg}
}

// courseOf is a course whose first build is as it should be.
func courseOf(build func(archive []byte) bool, events ...Event) Course {
	for seed := uint64(1); ; seed++ {
		if build(archive(refs()[0], seed<<20+1)) {
			slices.SortStableFunc(events, func(a, b Event) int { return int(a.At - b.At) })
			return Course{Seed: seed, Nodes: 3, Rounds: [][]Event{events}}
		}
	}
}

func isNoise(archive []byte) bool {
	return len(archive) > 5_000_000 && bytes.Count(archive[len(archive)/2:][:1000], []byte("a")) < 100
}

func isText(archive []byte) bool {
	return len(archive) > 5_000_000 && bytes.Count(archive[len(archive)/2:][:1000], []byte("a")) > 100
}

func isSmall(archive []byte) bool { return len(archive) < 100_000 }

// narrowed makes all ways narrow for a while.
func narrowed(from, forMS int64) (events []Event) {
	for node := range 3 {
		events = append(events, at(from, "narrow", node, (node+1)%3, forMS, 150_000))
	}
	return events
}

// halfArrived: the receivers crash when a part of the image is there.
func halfArrived() Course {
	return courseOf(isNoise, append(narrowed(500, 20_000), at(1000, "announce", 0, 1, 0, 0),
		at(3000, "garbage collection", 0, 1, 0, 0), at(8000, "crash", 1, 0, 500, 0), at(8000, "crash", 2, 0, 500, 0))...)
}

// limited sets low limits on one host.
func limited(node int) func() Course {
	return func() Course { return limitedOn(node) }
}

func limitedOn(node int) Course {
	events := []Event{at(500, "reload limits", node, 2, 15_000, 0), at(1000, "announce", 0, 1, 0, 0)}
	for ms := int64(2000); ms < 6000; ms += 500 { // each event is a look
		events = append(events, at(ms, "loss", 2, 1, 100, 1))
	}
	return courseOf(isNoise, events...)
}

// cutOffCrash: a host that has a record crashes, and comes back while it reaches nobody.
func cutOffCrash() Course {
	return courseOf(isSmall, at(500, "announce", 0, 1, 0, 0), at(10_000, "crash", 1, 0, 1000, 0),
		at(10_001, "cable pulled", 1, 0, 15_000, 0), at(20_000, "loss", 0, 2, 100, 1))
}

// split: both sides of a partition announce.
func split() Course {
	return courseOf(isSmall, at(500, "partition", 0, 1, 10_000, 1), at(2000, "announce", 0, 1, 0, 0), at(3000, "announce", 1, 0, 0, 0))
}

// replacedWhileDown: an image is announced while a receiver of the one before is down.
func replacedWhileDown() Course {
	return courseOf(isNoise, append(narrowed(500, 20_000), at(1000, "announce", 0, 1, 0, 0),
		at(5000, "crash", 1, 0, 15_000, 0), at(8000, "announce", 0, 1, 0, 4), at(9000, "announce", 0, 1, 0, 4))...)
}

// fullWithFrames: a disk on which frames are kept fills.
func fullWithFrames() Course {
	return courseOf(isText, at(500, "announce", 0, 1, 0, 0), at(10_000, "disk full", 1, 0, 20_000, 60_000), at(11_000, "loss", 0, 2, 100, 1), at(24_000, "loss", 0, 2, 100, 1))
}

// lookedAt: memory is looked at rarely.
func lookedAt() Course {
	events := []Event{at(500, "announce", 0, 1, 0, 0)}
	for i := range int64(40) {
		events = append(events, at(34_000+100*i, "loss", 2, 1, 50, 1))
	}
	return courseOf(isSmall, events...)
}

func purged() Course {
	return courseOf(isSmall, at(500, "announce", 0, 1, 0, 0), at(10_000, "purge", 0, 1, 0, 0))
}

// foundWhileItLied: a blob goes, and the check that finds it comes while the store says that
// all is complete.
func foundWhileItLied() Course {
	return courseOf(isSmall, at(1000, "announce", 0, 1, 0, 0), at(9000, "says it is complete", 1, 0, 20_000, 0),
		at(10_000, "blob removed", 1, 0, 0, 0), at(10_001, "says it is incomplete", 1, 0, 11_000, 0))
}

// blobGone: blobs of an image are removed below containerd.
func blobGone() Course {
	events := []Event{at(500, "announce", 0, 1, 0, 0)}
	for i := range uint64(6) {
		events = append(events, at(10_000+int64(i), "blob removed", 1, 0, 0, i))
	}
	return courseOf(isSmall, events...)
}

// TestMutationsFit: the texts that TestMutations replaces are there.
func TestMutationsFit(t *testing.T) {
	t.Parallel()
	for _, m := range mutations() {
		b, err := os.ReadFile(filepath.Join("..", "..", m.file))
		if n := bytes.Count(b, []byte(m.old)); err != nil || n != 1 {
			t.Errorf("%s: %q is %d times in %s, want once (%v)", m.name, m.old, n, m.file, err)
		}
		if !strings.Contains(m.new, fmt.Sprintf("mutated(%q)", m.name)) {
			t.Errorf("%s: the new text does not ask for it", m.name)
		}
	}
}

// TestMutations breaks the product in one way after the other and sees that a check
// finds each. All of them are in one program, which is built with an overlay; without any
// the same courses have to run to their ends.
func TestMutations(t *testing.T) {
	names := os.Getenv(envMutations)
	if names == "" {
		t.Skip("make dst-mutations runs this")
	}
	program := buildMutated(t)
	for _, m := range mutations() {
		if names != "all" && !slices.Contains(strings.Fields(names), m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			course := m.course()
			if r := runProgram(t, program, course); len(r.Violations) > 0 {
				t.Fatalf("with nothing broken: %q", r.Violations)
			}
			r := runProgram(t, program, course, childMutated+"="+m.name)
			found := slices.IndexFunc(r.Violations, func(v string) bool { return strings.Contains(v, m.want) })
			if found < 0 {
				t.Fatalf("no check found it, want %q; %q", m.want, r.Violations)
			}
			t.Logf("found: %s", firstLine(r.Violations[found]))
		})
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// buildMutated builds this package's test with all mutations.
func buildMutated(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace, texts := map[string]string{}, map[string]string{}
	for _, m := range mutations() {
		path := filepath.Join(root, m.file)
		if texts[path] == "" {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(b)
		}
		texts[path] = strings.Replace(texts[path], m.old, m.new, 1)
		pkg := filepath.Dir(path)
		texts[filepath.Join(pkg, "mutated_overlay.go")] = fmt.Sprintf(mutatedSource, filepath.Base(pkg), childMutated)
	}
	for path, text := range texts {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "mutated.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}
