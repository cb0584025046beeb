package disktest

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kind is what an op does.
type kind string

const (
	makeDir  kind = "mkdir"
	create   kind = "create"
	link     kind = "link"
	rename   kind = "rename"
	remove   kind = "remove"
	write    kind = "write"
	truncate kind = "truncate"
	syncFile kind = "sync"
	syncDir  kind = "sync directory"
	ack      kind = "ack"
)

// op is one step: a change of names, of a file's content, or a promise. Paths are
// relative to the directory that is looked at.
type op struct {
	kind kind
	path string // of the name that changes or comes, or the directory that is synced
	from string // of rename
	file int    // which file; files are numbered, names come and go
	at   int64  // of write; the size of truncate
	data []byte
	word string
}

func (o op) String() string {
	switch o.kind {
	case write:
		return fmt.Sprintf("write %d bytes at %d of file %d", len(o.data), o.at, o.file)
	case truncate:
		return fmt.Sprintf("truncate file %d to %d bytes", o.file, o.at)
	case syncFile:
		return fmt.Sprintf("sync file %d", o.file)
	case rename:
		return fmt.Sprintf("rename %s to %s", o.from, o.path)
	case create, link:
		return fmt.Sprintf("%s %s as file %d", o.kind, o.path, o.file)
	case ack:
		return "ack " + o.word
	}
	return string(o.kind) + " " + o.path
}

// tree is a directory: the names in it, and what the files hold. isDir stands for
// a directory instead of a file's number.
type tree struct {
	names map[string]int
	files map[int][]byte
}

const isDir = -1

func newTree() tree { return tree{names: map[string]int{}, files: map[int][]byte{}} }

func (t tree) clone() tree { return tree{maps.Clone(t.names), maps.Clone(t.files)} }

// apply changes the tree. Contents are never changed in place: trees share them.
func (t tree) apply(o op) {
	switch o.kind {
	case makeDir:
		t.names[o.path] = isDir
	case create, link:
		t.names[o.path] = o.file
	case remove:
		delete(t.names, o.path)
	case rename:
		t.rename(o.from, o.path)
	case write:
		b := t.files[o.file]
		next := make([]byte, max(len(b), int(o.at)+len(o.data)))
		copy(next, b)
		copy(next[o.at:], o.data)
		t.files[o.file] = next
	case truncate:
		next := make([]byte, o.at)
		copy(next, t.files[o.file])
		t.files[o.file] = next
	}
}

func (t tree) rename(from, to string) {
	n, ok := t.names[from]
	if !ok {
		return
	}
	delete(t.names, from)
	t.names[to] = n
	for name, n := range t.names {
		if below, ok := strings.CutPrefix(name, from+"/"); ok {
			delete(t.names, name)
			t.names[to+"/"+below] = n
		}
	}
}

// write makes the tree below dir.
func (t tree) write(tb testing.TB, dir string) {
	tb.Helper()
	for name, n := range t.names {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if n == isDir && err == nil {
			err = os.MkdirAll(path, 0o700)
		} else if err == nil {
			err = os.WriteFile(path, t.files[n], 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// read is the tree below dir.
func read(tb testing.TB, dir string) tree {
	tb.Helper()
	t := newTree()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			t.names[name] = isDir
			return nil
		}
		n := len(t.files) + 1
		t.names[name] = n
		t.files[n], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// String is the same for trees that nobody can tell apart.
func (t tree) String() string {
	var out strings.Builder
	for _, name := range sorted(t.names) {
		if n := t.names[name]; n == isDir {
			fmt.Fprintf(&out, "%s/\n", name)
		} else {
			fmt.Fprintf(&out, "%s %x\n", name, t.files[n])
		}
	}
	return out.String()
}

// recorder turns system calls into ops.
type recorder struct {
	dir   string
	start tree
	now   tree // with all ops so far
	next  int  // number of the next file
	open  map[int]*opened
	ops   []op
	lost  []string // calls that it does not know
}

// opened is an open file, or a directory.
type opened struct {
	path   string // of a directory
	file   int
	at     int64
	append bool
}

func newRecorder(tb testing.TB, dir string) *recorder {
	start := read(tb, dir)
	return &recorder{dir: dir, start: start, now: start.clone(), next: len(start.files) + 1, open: map[int]*opened{}}
}

func (r *recorder) add(o op) {
	r.ops = append(r.ops, o)
	r.now.apply(o)
}

// inside is the path below the directory; false for any other. A relative one
// begins at an open directory.
func (r *recorder) inside(dir uint64, path string) (string, bool) {
	if !filepath.IsAbs(path) {
		o := r.open[int(int32(dir))]
		if o == nil || o.file != isDir {
			return "", false
		}
		return filepath.Join(o.path, path), true
	}
	if path == r.dir {
		return ".", true
	}
	return strings.CutPrefix(filepath.Clean(path), r.dir+"/")
}

// begin takes a call before the kernel does it. A file is closed here: as soon as
// the kernel has closed it, another thread may get its number from a call that ends
// first.
func (r *recorder) begin(c *call) {
	if c.nr == unix.SYS_CLOSE {
		delete(r.open, int(int32(c.args[0])))
	}
}

// call takes a call that succeeded.
func (r *recorder) call(c *call) {
	fd := int(int32(c.args[0]))
	o := r.open[fd]
	switch c.nr {
	case unix.SYS_OPENAT:
		r.openat(c)
	case unix.SYS_WRITE:
		r.write(c, fd, o)
	case unix.SYS_PWRITE64:
		if o != nil {
			r.add(op{kind: write, file: o.file, at: int64(c.args[3]), data: c.data[:c.result]})
		}
	case unix.SYS_READ:
		if o != nil {
			o.at += c.result
		}
	case unix.SYS_LSEEK:
		if o != nil {
			o.at = c.result
		}
	case unix.SYS_FTRUNCATE:
		if o != nil {
			r.add(op{kind: truncate, file: o.file, at: int64(c.args[1])})
		}
	case unix.SYS_TRUNCATE:
		if name, ok := r.inside(0, c.text); ok {
			r.add(op{kind: truncate, file: r.now.names[name], at: int64(c.args[1])})
		}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if o != nil && o.file == isDir {
			r.add(op{kind: syncDir, path: o.path})
		} else if o != nil {
			r.add(op{kind: syncFile, file: o.file})
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		r.move(c)
	case unix.SYS_UNLINKAT:
		if name, ok := r.inside(c.args[0], c.text); ok {
			r.add(op{kind: remove, path: name})
		}
	case unix.SYS_MKDIRAT:
		if name, ok := r.inside(c.args[0], c.text); ok {
			r.add(op{kind: makeDir, path: name})
		}
	case unix.SYS_PWRITEV, unix.SYS_WRITEV, unix.SYS_FALLOCATE, unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE, unix.SYS_SPLICE:
		if o != nil || r.open[int(int32(c.args[2]))] != nil {
			r.lost = append(r.lost, fmt.Sprint("system call ", c.nr))
		}
	}
}

func (r *recorder) openat(c *call) {
	name, ok := r.inside(c.args[0], c.text)
	if !ok {
		delete(r.open, int(c.result))
		return
	}
	flags := int(c.args[2])
	n, there := r.now.names[name]
	o := &opened{file: n, append: flags&unix.O_APPEND != 0}
	switch {
	case name == "." || n == isDir:
		o.file, o.path = isDir, name
	case !there:
		o.file = r.next
		r.next++
		r.add(op{kind: create, path: name, file: o.file})
	case flags&unix.O_TRUNC != 0 && len(r.now.files[n]) > 0:
		r.add(op{kind: truncate, file: n})
	}
	r.open[int(c.result)] = o
}

func (r *recorder) write(c *call, fd int, o *opened) {
	if word, ok := bytes.CutPrefix(c.data, []byte(ackPrefix)); ok && fd == 1 {
		r.add(op{kind: ack, word: string(bytes.TrimSpace(word))})
		return
	}
	if o == nil {
		return
	}
	if o.append {
		o.at = int64(len(r.now.files[o.file]))
	}
	r.add(op{kind: write, file: o.file, at: o.at, data: c.data[:c.result]})
	o.at += c.result
}

func (r *recorder) move(c *call) {
	from, okFrom := r.inside(c.args[0], c.text)
	to, okTo := r.inside(c.args[2], c.text2)
	switch {
	case !okFrom && !okTo:
	case !okFrom || !okTo:
		r.lost = append(r.lost, fmt.Sprintf("%s to %s", c.text, c.text2))
	case c.nr == unix.SYS_LINKAT:
		r.add(op{kind: link, path: to, file: r.now.names[from]})
	default:
		r.add(op{kind: rename, from: from, path: to})
	}
}

// verify fails where the record does not add up to what is in the directory: then
// a way of writing was missed.
func (r *recorder) verify(t testing.TB) {
	t.Helper()
	if want := read(t, r.dir); len(r.lost) > 0 || r.now.String() != want.String() {
		t.Fatalf("the record is not complete (%q): %q, want %q", r.lost, sorted(r.now.names), sorted(want.names))
	}
	if len(r.ops) == 0 {
		t.Fatal("nothing was written")
	}
}

func (r *recorder) String() string {
	var out strings.Builder
	for k, o := range r.ops {
		fmt.Fprintf(&out, "%3d %v\n", k, o)
	}
	return out.String()
}
