package dst

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"seeder/p2p"
	"seeder/p2p/catalog"
	"seeder/p2p/p2ptest"
	"seeder/store"
	"seeder/store/ctrd"
)

// machine is one host: what is on its disk, and the daemon while that runs.
type machine struct {
	c     *cluster
	name  string
	index int
	host  *p2ptest.Host
	dir   string // data_dir, a file system of its own where that is allowed
	gens  int    // of dir

	up    bool
	node  *p2p.Node
	store *faultyStore
	since time.Time // when it was started last

	last     map[string]catalog.Record // what its catalog was found to say last
	tampered map[string]bool           // blobs that faults took away or changed, by hex
	rotten   map[string]bool           // those that are there, but changed: found when somebody asks for them
	// hand are the targets that people have put under a reference here, or that are left
	// from a catalog that was lost: seeder has to leave those alone where it was not told
	// otherwise.
	hand   map[string]map[digest.Digest]bool
	handMu sync.Mutex

	wellAgain []func()             // ends of faults that must not outlive the process
	limit     *limit               // what was set last, while it holds
	kept      map[string]keptImage // by the digest of the seed index
	over      time.Time            // since when its cache holds more than its bound; before since: it does not
	skew      time.Duration        // of its clock
	skewMu    sync.Mutex
}

const (
	diskBytes   = 256 << 20
	gossipPort  = "7950"
	transPort   = "7951"
	openTimeout = time.Minute
)

func (m *machine) ip() string { return m.host.IP() }

// newDisk makes an empty data_dir.
func (m *machine) newDisk() (string, error) {
	m.gens++
	return m.newDiskAt(fmt.Sprintf("%s-%d", m.name, m.gens))
}

func (m *machine) newDiskAt(name string) (string, error) {
	dir := filepath.Join(m.c.base, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if !m.c.mounts {
		return dir, nil
	}
	return dir, unix.Mount("tmpfs", dir, "tmpfs", 0, sizeOption(diskBytes))
}

func sizeOption(bytes int64) string { return fmt.Sprintf("size=%d,mode=0700", bytes) }

func (m *machine) dropDisk(dir string) {
	if m.c.mounts {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	_ = os.RemoveAll(dir)
}

// start runs the daemon on what is on the disk.
func (m *machine) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	log := m.c.log.With("host", m.name)
	real, err := store.Open(ctx, store.Config{
		DataDir: m.dir, Log: log.With("component", "store"), Cache: store.Reserve{Bytes: cacheBytes}, MinFree: store.Reserve{Bytes: minFreeBytes},
		Containerd: ctrd.Config{Address: ctrd.Embedded, Root: filepath.Join(m.dir, "embedded"), Pin: true, Log: log},
	})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	m.store = newFaultyStore(real)
	cfg := p2p.Config{
		Name: m.name, Version: "dst", DataDir: m.dir, Network: m.host, Now: m.now,
		Advertise: m.host.Advertise, Changes: m.host.Changes,
		GossipBind: "0.0.0.0:" + gossipPort, TransferBind: "0.0.0.0:" + transPort,
		Join:    func() []string { return []string{m.c.machines[0].ip(), m.c.machines[1].ip()} }, // these never move
		Secrets: m.c.secrets(), Follow: true, KeepPrevious: 1, Pinned: true, Log: log,
	}
	m.node = p2p.New(cfg, m.store)
	m.host.SetUp(true)
	if err := m.node.Open(context.Background()); err != nil {
		m.host.SetUp(false)
		return errors.Join(fmt.Errorf("open the node: %w", err), real.Close())
	}
	m.up, m.since = true, time.Now()
	return nil
}

// leave ends the daemon as systemctl stop does.
func (m *machine) leave() error {
	m.recover()
	m.c.poll()
	m.keep()
	m.up = false
	ended := make(chan error, 1)
	node, s := m.node, m.store
	go func() {
		err := node.Close()
		s.end()
		ended <- errors.Join(err, s.Close())
	}()
	select {
	case err := <-ended:
		m.host.SetUp(false)
		if err != nil && !errors.Is(err, context.Canceled) {
			m.c.log.Info("close", "host", m.name, "err", err)
		}
		return nil
	case <-s.stopped: // it has come to the call at which the machine stops dead
		m.c.result.Counts["crash in a call"]++
		return m.die(func() { <-ended })
	case <-time.After(closeBound):
		m.host = m.host.Crash()
		m.c.zombies.Go(func() { <-ended })
		return fmt.Errorf("%s: the node had not closed %s after it was told to", m.name, closeBound)
	}
}

// recover ends the faults that must not outlive the process.
func (m *machine) recover() {
	for _, end := range m.wellAgain {
		end()
	}
	m.wellAgain = nil
}

// closeBound is what the end of a daemon may take; the process ends then.
const closeBound = 9 * time.Second

// crash takes the power away: the machine goes on from the bytes that are on its disk
// at this instant. What still runs of it runs against another disk and no network,
// until it has ended.
func (m *machine) crash() error {
	m.recover()
	synctest.Wait()
	m.c.poll()
	m.keep()
	node, st := m.node, m.store
	return m.die(func() {
		_ = node.Close()
		_ = st.Close()
	})
}

// die has the machine go on from a copy of its disk. end waits for what ran, which is told
// that the machine has crashed.
func (m *machine) die(end func()) error {
	synctest.Wait()
	dir, err := m.newDisk()
	if err == nil {
		err = copyTree(m.dir, dir)
	}
	if err != nil {
		return fmt.Errorf("harness: copy the disk of %s: %w", m.name, err)
	}
	old, s := m.dir, m.store
	m.dir, m.up = dir, false
	m.c.zombieMachines++
	m.host = m.host.Crash()
	m.c.result.Crashes++
	m.c.zombies.Go(func() {
		s.end()
		end()
		m.dropDisk(old)
	})
	return nil
}

// copyTree copies files with their times.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(path, from))
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(dst, info.Mode().Perm())
		}
		if err := copyFile(path, dst, info.Mode().Perm()); err != nil {
			return err
		}
		return os.Chtimes(dst, info.ModTime(), info.ModTime())
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, mode))
}

// date gives files that were written since the last call the virtual time, which is
// decades before that of the file system.
func (m *machine) date(now time.Time) {
	_ = filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it was removed meanwhile
		}
		if info, err := d.Info(); err == nil && info.ModTime().After(now) {
			_ = os.Chtimes(path, now, now)
		}
		return nil
	})
}

// put notes that somebody has put target under ref here.
func (m *machine) put(ref string, target digest.Digest) {
	m.handMu.Lock()
	defer m.handMu.Unlock()
	if m.hand[ref] == nil {
		m.hand[ref] = map[digest.Digest]bool{}
	}
	m.hand[ref][target] = true
}

// wasPut reports whether somebody has.
func (m *machine) wasPut(ref string, target digest.Digest) bool {
	m.handMu.Lock()
	defer m.handMu.Unlock()
	return m.hand[ref][target]
}

// lines is where the log of a course goes; the last ones are kept.
type lines struct {
	mu   sync.Mutex
	file io.Writer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return len(p), nil
	}
	return l.file.Write(p)
}

func newLog(path string) (*slog.Logger, io.Closer, error) {
	if path == "" {
		return slog.New(slog.DiscardHandler), io.NopCloser(nil), nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewTextHandler(&lines{file: f}, &slog.HandlerOptions{Level: slog.LevelDebug})), f, nil
}
