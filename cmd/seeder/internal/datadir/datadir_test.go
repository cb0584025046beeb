package datadir

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/internal/disk/disktest"
)

// open opens dir and says what was logged. It is unlocked at the end of the test at the latest.
func open(t testing.TB, dir string) (unlock func(), logged string, err error) {
	t.Helper()
	var log bytes.Buffer
	close, err := Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		return func() {}, log.String(), err
	}
	unlock = sync.OnceFunc(func() {
		if err := close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(unlock)
	return unlock, log.String(), nil
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	unlock, _, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, dir); err == nil || !strings.Contains(err.Error(), "another seeder daemon uses it") {
		t.Errorf("a second daemon: %v", err)
	}
	unlock()
	if _, _, err := open(t, dir); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, filepath.Join(file, "data")); err == nil || !strings.Contains(err.Error(), "set data_dir to") {
		t.Errorf("data_dir below a file: %v", err)
	}
}

// TestUnlockedBesideACopy has a second descriptor of the lock, as a child process has between
// its fork and its program.
func TestUnlockedBesideACopy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, _, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	held := -1
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && to == filepath.Join(dir, "lock") {
			n, err := strconv.Atoi(fd.Name())
			if err != nil {
				t.Fatal(err)
			}
			if held, err = syscall.Dup(n); err != nil {
				t.Fatal(err)
			}
			defer syscall.Close(held)
		}
	}
	if held < 0 {
		t.Fatal("no descriptor of the lock")
	}
	unlock()
	if _, _, err := open(t, dir); err != nil {
		t.Errorf("after the daemon has ended: %v", err)
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, before string
		newer        bool
		says         string // logged
	}{
		{"none: written before there were schemas", "", false, ""},
		{"this one", "1\n", false, ""},
		{"a newer one", "2\n", true, ""},
		{"a much newer one", "4711\n", true, ""},
		{"damaged", "\x00\x00", false, "schema file of data_dir was damaged"},
		{"half", "\n", false, "schema file of data_dir was damaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "schema")
			if tc.before != "" {
				if err := os.WriteFile(path, []byte(tc.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, log, err := open(t, dir)
			now, rerr := os.ReadFile(path)
			if rerr != nil {
				t.Fatal(rerr)
			}
			if tc.newer {
				if err == nil {
					t.Fatal("no error")
				}
				clitest.WantAll(t, err.Error(), dir, "schema "+strings.TrimSpace(tc.before), "up to 1", "install the newer version again, or set data_dir to")
				if string(now) != tc.before {
					t.Errorf("the schema was changed to %q", now)
				}
				return
			}
			if err != nil || string(now) != "1\n" || !strings.Contains(log, tc.says) || (tc.says == "") != (log == "") {
				t.Errorf("%v, schema %q, it says %q", err, now, log)
			}
		})
	}
}

// TestDataDirCut: a cut anywhere leaves a data_dir that opens, with its schema
// whole or absent, and nothing half written stays.
func TestDataDirCut(t *testing.T) {
	t.Parallel()
	disktest.Crashes(t, nil, func(dir string, ack func(string)) {
		if _, _, err := open(t, filepath.Join(dir, "data")); err != nil {
			panic(err)
		}
		ack("open")
	}, func(t *testing.T, s disktest.State) {
		dir := filepath.Join(s.Dir, "data")
		if b, err := os.ReadFile(filepath.Join(dir, "schema")); s.Has("open") && (err != nil || string(b) != "1\n") {
			t.Errorf("%q %v", b, err)
		}
		_, log, err := open(t, dir)
		if err != nil || log != "" {
			t.Error(err, log)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 { // schema, lock
			t.Errorf("%v %v", entries, err)
		}
	})
}

// TestStartsOnAFullDisk: a data_dir of before opens without a byte of room.
func TestStartsOnAFullDisk(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	dir := t.TempDir()
	unlock, _, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	disktest.LimitFiles(t, 0)
	if _, log, err := open(t, dir); err != nil || log != "" {
		t.Error(err, log)
	}
	_, _, err = open(t, filepath.Join(dir, "new"))
	if err == nil {
		t.Fatal("a new data_dir without room")
	}
	clitest.WantAll(t, err.Error(), filepath.Join(dir, "new"), "write its schema", "file too large")
}

// TestDisk: a disk that is full, and one that cannot be written, told apart.
func TestDisk(t *testing.T) {
	t.Parallel()
	if !disktest.Alone(t) {
		return
	}
	root, readOnly := disktest.SmallDisk(t, 64<<10)
	tried := func(name string) error {
		unlock, _, err := open(t, filepath.Join(root, name))
		unlock()
		return err
	}
	if err := tried("data"); err != nil {
		t.Fatal(err)
	}
	free := disktest.Fill(t, root)
	if err := tried("data"); err != nil {
		t.Errorf("full: %v", err)
	}
	err := tried("new")
	if err == nil {
		t.Fatal("a new data_dir on a full disk")
	}
	clitest.WantAll(t, err.Error(), filepath.Join(root, "new"), "no space left")
	free()
	readOnly()
	err = tried("data")
	if err == nil {
		t.Fatal("a read-only disk")
	}
	clitest.WantAll(t, err.Error(), filepath.Join(root, "data"), "not writable", "read-only file system", "set data_dir to")
}
