package delta

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"
)

// rotting is a blob that is another one after so many reads.
type rotting struct {
	io.ReaderAt
	left atomic.Int64
	keep []byte // what it is then; of the same length
}

func (r *rotting) ReadAt(p []byte, off int64) (int, error) {
	if r.left.Add(-1) < 0 {
		return bytes.NewReader(r.keep).ReadAt(p, off)
	}
	return r.ReaderAt.ReadAt(p, off)
}

// TestBaseRotsMeanwhile: a base that becomes another one while it is read ends the decoder with
// an error, whenever that is: it neither panics nor goes on for ever.
func TestBaseRotsMeanwhile(t *testing.T) {
	plain := text(1, 12<<20)
	swapped := append(bytes.Clone(plain[6<<20:]), plain[:6<<20]...)
	for _, packed := range []packer{packers()[8], {"plain", func(_ testing.TB, p []byte) []byte { return p }}} {
		kind := Deflate
		if packed.name == "plain" {
			kind = Bytes
		}
		old, now, other := packed.pack(t, plain), packed.pack(t, swapped), packed.pack(t, text(9, 12<<20))
		rotten := append(bytes.Clone(other[:min(len(other), len(old))]), make([]byte, max(0, len(old)-len(other)))...)
		var d bytes.Buffer
		if _, _, err := Encode(context.Background(), &d, kind, blob(old), blob(now), 0); err != nil {
			t.Fatal(err)
		}
		count := &rotting{ReaderAt: bytes.NewReader(old)}
		count.left.Store(1 << 40)
		base := blob(old)
		base.ReaderAt = count
		if _, err := Decode(context.Background(), io.Discard, bytes.NewReader(d.Bytes()), base); err != nil {
			t.Fatal(err)
		}
		reads := 1<<40 - count.left.Load()
		for i := range int64(24) {
			r := &rotting{ReaderAt: bytes.NewReader(old), keep: rotten}
			r.left.Store(reads * i / 24)
			base.ReaderAt = r
			done := make(chan error, 1)
			go func() {
				_, err := Decode(context.Background(), io.Discard, bytes.NewReader(d.Bytes()), base)
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil {
					t.Errorf("%s: no error of a base that is another one after %d of %d reads", packed.name, reads*i/24, reads)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: no end with a base that is another one after %d of %d reads", packed.name, reads*i/24, reads)
			}
		}
	}
}
