package stage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"seeder/store/chunk"
)

// soundFor is for how long a payload counts as sound after its sum was right, if its file
// has not changed since: it is in the page cache then, where a disk cannot damage it. A chunk
// of a new image goes out to others within seconds of its arrival.
const soundFor = 10 * time.Second

// stamp tells whether anybody else has written to a file: by the time of its inode, which
// nobody can set.
type stamp struct {
	size    int64
	changed unix.Timespec
}

// stamp is zero where it cannot be told.
func (h *handle) stamp() stamp {
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return stamp{}
	}
	return stamp{st.Size, st.Ctim}
}

// look takes no payload for sound any more where somebody else has written to the file.
// The caller holds the mutex.
func (b *Blob) look() {
	if now := b.file.stamp(); now != b.stamp || now == (stamp{}) {
		b.stamp = now
		for n := range b.at {
			b.at[n].summed = time.Time{}
		}
	}
}

// ErrDamaged says that a frame on disk is not what was put. It wraps fs.ErrNotExist.
var ErrDamaged = fmt.Errorf("damaged on disk: %w", fs.ErrNotExist)

// Frame opens the frame of chunk n, once its sum on disk is right: what was verified
// when it was put may have rotted since (soundFor). The error wraps fs.ErrNotExist where it is not
// here, and ErrDamaged where it has rotted or the disk does not give it back: it would not
// the next time, and others have the chunk. A frame of the cache is dropped then.
// The payload stays readable until it is closed, whatever becomes of the file.
func (b *Blob) Frame(n int) (enc chunk.Encoding, bytes int64, payload *Payload, err error) {
	s, payload, sound, err := b.find(n)
	if err != nil {
		return 0, 0, nil, err
	}
	if !sound {
		buf := b.dir.buffers.Get(int(s.len))
		err = b.check(n, s, payload, buf)
		b.dir.buffers.Put(buf)
	}
	if err != nil {
		payload.Close()
		return 0, 0, nil, err
	}
	return s.enc, int64(s.len), payload, nil
}

// Read reads the frame of chunk n into what into gives for so many bytes, and checks its
// sum. The errors are Frame's.
func (b *Blob) Read(n int, into func(enc chunk.Encoding, bytes int) []byte) (enc chunk.Encoding, payload []byte, err error) {
	s, r, _, err := b.find(n)
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	payload = into(s.enc, int(s.len))
	return s.enc, payload, b.check(n, s, r, payload)
}

// find finds the payload of chunk n. sound says that its sum need not be checked.
func (b *Blob) find(n int) (s span, payload *Payload, sound bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s = b.at[n]; !s.held || b.file == nil {
		return s, nil, false, fmt.Errorf("frame of chunk %d of %s: %w", n, b.info.Digest, fs.ErrNotExist)
	}
	b.look()
	summed := b.at[n].summed
	b.file.refs.Add(1)
	payload = &Payload{SectionReader: io.NewSectionReader(b.file, s.off, int64(s.len)), file: b.file}
	return s, payload, !summed.IsZero() && time.Since(summed) < soundFor, nil
}

// check reads a payload into buf, which is as long, and compares its sum.
func (b *Blob) check(n int, s span, r *Payload, buf []byte) error {
	if _, err := r.ReadAt(buf, 0); err != nil && !errors.Is(err, io.EOF) {
		b.rotten(n, r.file, err)
		return fmt.Errorf("read the frame of chunk %d of %s: %w: %w", n, b.info.Digest, err, ErrDamaged)
	}
	if newHeader(n, s.enc, buf).crc != s.crc {
		b.rotten(n, r.file, nil)
		return fmt.Errorf("frame of chunk %d of %s: %w", n, b.info.Digest, ErrDamaged)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == r.file && b.at[n].off == s.off {
		b.at[n].summed = time.Now() // a write by somebody else since then is seen by look
	}
	return nil
}

// Payload is a frame's payload on disk. One goroutine uses it.
type Payload struct {
	*io.SectionReader
	file *handle
	once sync.Once
}

// Close implements io.Closer.
func (r *Payload) Close() error {
	r.once.Do(r.file.release)
	return nil
}
