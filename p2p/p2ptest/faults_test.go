package p2ptest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pair is a connection between two new hosts; what one writes the other reads.
func pair(t *testing.T, n *Network) (a, b *Host, near, far net.Conn) {
	t.Helper()
	a, b = n.Host("10.0.0.1"), n.Host("10.0.0.2")
	l, err := b.Listen("10.0.0.2:7951")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if near, err = a.Dial(context.Background(), "tcp", "10.0.0.2:7951"); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b, near, far
}

// read is what arrives within a second.
func read(c net.Conn) (string, error) {
	b := make([]byte, 64)
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	n, err := c.Read(b)
	return string(b[:n]), err
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func TestHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, near, far := pair(t, NewNetwork(1))
		write(t, near, "before")
		if s, err := read(far); s != "before" || err != nil {
			t.Fatalf("%q %v before it was lost", s, err)
		}
		if !a.Lose(0) {
			t.Fatal("there was no connection to lose")
		}
		write(t, near, "after")
		if s, err := read(far); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a lost connection gave %q %v", s, err)
		}
		near.Close()
		if s, err := read(far); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the end of a lost connection was told: %q %v", s, err)
		}
		far.Close()
	})
}

// A host that crashed does nothing any more, and is another one once it is back.
func TestCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, near, far := pair(t, NewNetwork(1))
		again := b.Crash()
		write(t, near, "anybody there?")
		if s, err := read(far); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the crashed host read %q %v", s, err)
		}
		if s, err := read(near); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the other end was told at once: %q %v", s, err)
		}
		if _, err := b.Dial(context.Background(), "tcp", "10.0.0.1:7951"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("the crashed host dialled: %v", err)
		}
		if _, err := b.Listen("10.0.0.2:7952"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("the crashed host listens: %v", err)
		}
		again.SetUp(true)
		if s, err := read(near); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the start the other end got %q %v", s, err)
		}
		if _, err := a.Dial(context.Background(), "tcp", "10.0.0.2:7951"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("what the crashed host listened on is still there: %v", err)
		}
		near.Close()
		far.Close()
	})
}

func TestLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b, near, far := pair(t, n)
		n.SetLink([]*Host{a}, []*Host{b}, Link{Delay: 100 * time.Millisecond, Jitter: 50 * time.Millisecond})
		begun := time.Now()
		write(t, near, "late")
		if s, err := read(far); s != "late" || err != nil || time.Since(begun) < 100*time.Millisecond || time.Since(begun) > 151*time.Millisecond {
			t.Errorf("%q %v after %s", s, err, time.Since(begun))
		}
		begun = time.Now()
		write(t, far, "soon")
		if s, err := read(near); s != "soon" || err != nil || time.Since(begun) > 5*time.Millisecond {
			t.Errorf("the other direction: %q %v after %s", s, err, time.Since(begun))
		}
		from, _ := a.ListenPacket("10.0.0.1:7950")
		to, _ := b.ListenPacket("10.0.0.2:7950")
		n.SetLink([]*Host{a}, []*Host{b}, Link{Twice: 1})
		if _, err := from.WriteTo([]byte("packet"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := len(to.(*socket).packets); got != 2 {
			t.Errorf("%d packets came of one that is sent twice", got)
		}
		n.SetLink([]*Host{a}, []*Host{b}, Link{Loss: 1})
		if _, err := from.WriteTo([]byte("packet"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := len(to.(*socket).packets); got != 2 {
			t.Errorf("%d packets, one of them over a link that loses all", got)
		}
		near.Close()
		far.Close()
		from.Close()
		to.Close()
	})
}

// A narrow link lets so many bytes through in a second, and its writer waits.
func TestNarrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b, near, far := pair(t, n)
		const rate, total = 100_000, 1_000_000
		n.SetLink([]*Host{a}, []*Host{b}, Link{BytesPerSec: rate})
		began := time.Now()
		wrote := make(chan time.Duration, 1)
		go func() {
			for range total / 10_000 {
				if _, err := near.Write(make([]byte, 10_000)); err != nil {
					t.Error(err)
				}
			}
			wrote <- time.Since(began)
		}()
		if got, err := io.CopyN(io.Discard, far, total); got != total || err != nil {
			t.Errorf("%d bytes, %v", got, err)
		}
		const want = total / rate * time.Second
		if took := time.Since(began); took < want || took > want+time.Second {
			t.Errorf("%d bytes took %s with %d a second, want %s", total, took, rate, want)
		}
		if took := <-wrote; took < want-4*time.Second || took > want {
			t.Errorf("the writer had written after %s, want some 2.5 s before %s", took, want)
		}
		if err := near.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		var err error
		for began = time.Now(); err == nil && time.Since(began) < time.Minute; {
			_, err = near.Write(make([]byte, 100_000))
		}
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took > time.Second {
			t.Errorf("%v after %s, want the deadline after a second", err, took)
		}
		near.Close()
		far.Close()
	})
}
