package dst

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/p2p"
	"seeder/store"
	"seeder/store/chunk"
	"seeder/store/ctrd"
)

// faultyStore is the real image store of one host, as p2p sees it through
// cmd/seeder, with faults at each call. The zero value of a fault is: none.
type faultyStore struct {
	*store.Store

	mu       sync.Mutex
	gone     bool          // the process has ended
	down     bool          // calls fail, as while containerd is away
	hangs    chan struct{} // calls wait until it closes, or their context ends
	slow     time.Duration // each call takes that much longer
	saysGone bool          // an image that is complete is said not to be
	saysDone bool          // an image whose name is right is said to be complete
	claims   bool          // chunks that are not here are said to be
	garbles  bool          // frames go out with a wrong byte
	putErr   error         // of each chunk that comes
	frameErr error         // in the middle of each frame that goes out
	nameErr  error         // of each import, after everything has come
	stopAt   int           // calls until the machine stops dead; 0: never
	stopped  chan struct{} // closes then

	calls map[string]int

	sent, received atomic.Int64            // bytes of chunks
	puts           map[string]map[int]bool // chunks that were verified and staged, by the digest of their seed index
}

func newFaultyStore(s *store.Store) *faultyStore {
	return &faultyStore{Store: s, calls: map[string]int{}, puts: map[string]map[int]bool{}, stopped: make(chan struct{})}
}

// errGone is what a process that has ended is told.
var errGone = errors.New("the machine has crashed")

// set changes the faults.
func (s *faultyStore) set(change func(*faultyStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// end wakes whatever waits in the store of a machine that has crashed.
func (s *faultyStore) end() {
	s.set(func(s *faultyStore) {
		s.gone, s.stopAt = true, 0
		if s.hangs != nil {
			close(s.hangs)
			s.hangs = nil
		}
	})
}

// gate lets a call through, late or not at all.
func (s *faultyStore) gate(ctx context.Context, call string) error {
	s.mu.Lock()
	s.calls[call]++
	gone, down, hangs, slow := s.gone, s.down, s.hangs, s.slow
	if s.stopAt > 0 {
		if s.stopAt--; s.stopAt == 0 {
			close(s.stopped)
			s.hangs = make(chan struct{})
			hangs = s.hangs
			ctx = context.WithoutCancel(ctx)
		}
	}
	s.mu.Unlock()
	switch {
	case gone:
		return errGone
	case hangs != nil:
		select {
		case <-hangs:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", call, context.Cause(ctx))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gone {
			return errGone
		}
	case down:
		return fmt.Errorf("%s: %w: fault", call, ctrd.ErrUnavailable)
	case slow > 0:
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", call, context.Cause(ctx))
		}
	}
	return nil
}

// called is how often the store was asked for anything.
func (s *faultyStore) called() (sum int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.calls {
		sum += n
	}
	return sum
}

func (s *faultyStore) List(ctx context.Context) (map[string]digest.Digest, error) {
	if err := s.gate(ctx, "list"); err != nil {
		return nil, err
	}
	return s.Store.List(ctx)
}

func (s *faultyStore) Check(ctx context.Context, ref string, target digest.Digest) (bool, string, error) {
	if err := s.gate(ctx, "check"); err != nil {
		return false, "", err
	}
	s.mu.Lock()
	saysGone, saysDone := s.saysGone, s.saysDone
	s.mu.Unlock()
	ready, reason, err := s.Store.Check(ctx, ref, target)
	if err == nil && ready && saysGone {
		return false, "fault: a blob is missing", nil
	}
	if err == nil && !ready && saysDone {
		have, err := s.Store.List(ctx)
		return err == nil && have[ref] == target, reason, err
	}
	return ready, reason, err
}

func (s *faultyStore) Intact(ctx context.Context, ref string) bool {
	if s.gate(ctx, "intact") != nil {
		return true
	}
	s.mu.Lock()
	saysGone, saysDone := s.saysGone, s.saysDone
	s.mu.Unlock()
	return !saysGone && (saysDone || s.Store.Intact(ctx, ref))
}

func (s *faultyStore) SeedIndex(ctx context.Context, seed digest.Digest) ([]byte, error) {
	if err := s.gate(ctx, "seed index"); err != nil {
		return nil, err
	}
	return s.Store.SeedIndex(ctx, seed)
}

func (s *faultyStore) Image(ctx context.Context, index []byte) (p2p.Image, error) {
	if err := s.gate(ctx, "image"); err != nil {
		return nil, err
	}
	img, err := s.Store.Image(ctx, index)
	if err != nil {
		return nil, err
	}
	return &faultyImage{Image: img, store: s, seed: digest.FromBytes(index).Encoded()}, nil
}

func (s *faultyStore) Prepare(ctx context.Context, ref string, o chunk.PrepareOptions) (p2p.Prepared, error) {
	if err := s.gate(ctx, "prepare"); err != nil {
		return p2p.Prepared{}, err
	}
	return s.Store.Prepare(ctx, ref, o)
}

func (s *faultyStore) FromRegistry(ctx context.Context, ref string) (bool, error) {
	if err := s.gate(ctx, "from registry"); err != nil {
		return false, err
	}
	return s.Store.FromRegistry(ctx, ref)
}

func (s *faultyStore) Preloaded(ctx context.Context, ref string) (bool, error) {
	if err := s.gate(ctx, "preloaded"); err != nil {
		return false, err
	}
	return s.Store.Preloaded(ctx, ref)
}

func (s *faultyStore) InUse(ctx context.Context, ref string) ([]string, error) {
	return nil, s.gate(ctx, "in use") // the embedded store runs nothing
}

func (s *faultyStore) KeepPrevious(ctx context.Context, targets []digest.Digest) error {
	if err := s.gate(ctx, "keep previous"); err != nil {
		return err
	}
	return s.Store.KeepPrevious(ctx, targets)
}

func (s *faultyStore) Discard(ctx context.Context, ref string, target digest.Digest) error {
	if err := s.gate(ctx, "discard"); err != nil {
		return err
	}
	return s.Store.Discard(ctx, ref, target)
}

func (s *faultyStore) Release(ctx context.Context, ref string) error {
	if err := s.gate(ctx, "release"); err != nil {
		return err
	}
	return s.Store.Release(ctx, ref)
}

func (s *faultyStore) Remove(ctx context.Context, ref string) (int64, error) {
	if err := s.gate(ctx, "remove"); err != nil {
		return 0, err
	}
	return s.Store.Remove(ctx, ref)
}

func (s *faultyStore) Tidy(ctx context.Context, seeds, targets []digest.Digest) error {
	if err := s.gate(ctx, "tidy"); err != nil {
		return err
	}
	return s.Store.Tidy(ctx, seeds, targets)
}

func (s *faultyStore) Health(ctx context.Context) (address, version string, err error) {
	if err := s.gate(ctx, "health"); err != nil {
		return "embedded", "", err
	}
	return s.Store.Health(ctx)
}

// faultyImage is an image of a faultyStore.
type faultyImage struct {
	*store.Image
	store *faultyStore
	seed  string
}

func (i *faultyImage) Have() chunk.Bitmap {
	i.store.mu.Lock()
	claims := i.store.claims
	i.store.mu.Unlock()
	if claims {
		return i.Wanted()
	}
	return i.Image.Have()
}

func (i *faultyImage) Put(ctx context.Context, n int, enc chunk.Encoding, payload []byte) (bool, error) {
	if err := i.store.gate(ctx, "put"); err != nil {
		return false, err
	}
	i.store.mu.Lock()
	err := i.store.putErr
	i.store.mu.Unlock()
	if err != nil {
		return false, err
	}
	verified, err := i.Image.Put(ctx, n, enc, payload)
	i.store.took(i.seed, n, len(payload), verified && err == nil)
	return verified, err
}

func (i *faultyImage) Frame(ctx context.Context, n int) (chunk.Frame, error) {
	if err := i.store.gate(ctx, "frame"); err != nil {
		return chunk.Frame{}, err
	}
	f, err := i.Image.Frame(ctx, n)
	if err != nil {
		return chunk.Frame{}, err
	}
	f.Payload = &metered{f.Payload, i.store}
	payload, size := f.Payload, f.Bytes
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	switch {
	case i.store.frameErr != nil:
		f.Payload = &cut{ReadCloser: payload, left: size / 2, err: i.store.frameErr}
	case i.store.garbles:
		f.Payload, err = garbled(payload)
	}
	return f, err
}

func (i *faultyImage) Import(ctx context.Context, ref string) error {
	if err := i.store.gate(ctx, "import"); err != nil {
		return err
	}
	i.store.mu.Lock()
	err := i.store.nameErr
	i.store.mu.Unlock()
	if err != nil {
		return err
	}
	return i.Image.Import(ctx, ref)
}

func (i *faultyImage) Room(ctx context.Context) (why string, lackingBytes int64, err error) {
	if err := i.store.gate(ctx, "room"); err != nil {
		return "", 0, err
	}
	return i.Image.Room(ctx)
}

// cut is a file of which only the beginning can be read.
type cut struct {
	io.ReadCloser
	left int64
	err  error
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, c.err
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// garbled is payload with its last bit flipped.
func garbled(payload io.ReadCloser) (io.ReadCloser, error) {
	b, err := io.ReadAll(payload)
	if err := errors.Join(err, payload.Close()); err != nil {
		return nil, err
	}
	if len(b) > 0 {
		b[len(b)-1] ^= 1
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// errIO is an error of a disk that fails.
var errIO = fmt.Errorf("fault: %w", syscall.EIO)
