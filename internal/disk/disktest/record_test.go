package disktest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNumberOfAClosedFile: a thread may get the number of a file that another one
// closes before the tracer sees that call end.
func TestNumberOfAClosedFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRecorder(t, dir)
	open := &call{nr: unix.SYS_OPENAT, text: dir, result: 5}
	closing := &call{nr: unix.SYS_CLOSE, args: [6]uint64{5}}
	r.begin(open)
	r.call(open)
	r.begin(closing)
	r.begin(open) // by another thread
	r.call(open)
	r.call(closing)
	r.call(&call{nr: unix.SYS_UNLINKAT, args: [6]uint64{5}, text: "file"})
	if err := os.Remove(filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	r.verify(t)
}

// TestThreadsThatRemove: the record of threads that make and remove directories
// side by side is complete.
func TestThreadsThatRemove(t *testing.T) {
	KilledCrashes(t, func(dir string, ack func(string)) {
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d"} {
			wg.Go(func() {
				for range 20 {
					sub := filepath.Join(dir, name)
					if err := os.Mkdir(sub, 0o700); err != nil {
						panic(err)
					}
					if err := os.WriteFile(filepath.Join(sub, "file"), []byte(name), 0o600); err != nil {
						panic(err)
					}
					if err := os.RemoveAll(sub); err != nil {
						panic(err)
					}
				}
			})
		}
		wg.Wait()
	}, func(t *testing.T, s State) {})
}
