// Package reserve accepts connections for a process that may run out of file
// descriptors.
//
// It owns one spare descriptor for each listener. It never decides how many connections
// there are. It keeps this invariant: anyone who connects while no descriptor is free is
// told so at once, and does not wait in the kernel's queue for an answer that cannot
// come.
package reserve

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Listener is a net.Listener that refuses connections which it has no descriptor for.
type Listener struct {
	net.Listener
	refuse func(net.Conn)

	mu     sync.Mutex
	spare  *os.File
	closed bool
}

// refuseWait bounds how long a refused connection is waited for: it may be gone by the
// time that it is accepted. refuseWrite bounds the word to it.
const (
	refuseWait  = 100 * time.Millisecond
	refuseWrite = 100 * time.Millisecond
)

// Listen wraps l. refuse gets each connection for which there is no descriptor, to say
// so; it is closed afterwards. nil: it is just closed.
func Listen(l net.Listener, refuse func(net.Conn)) *Listener {
	r := &Listener{Listener: l, refuse: refuse}
	r.refill()
	return r
}

// refill opens the spare descriptor, if there is one to be had.
func (l *Listener) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare == nil && !l.closed {
		l.spare, _ = os.Open(os.DevNull) // where there is none, the next Accept tries again
	}
}

// release gives the spare descriptor back, and reports whether there was one.
func (l *Listener) release() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare == nil {
		return false
	}
	l.spare.Close()
	l.spare = nil
	return true
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.refill()
		conn, err := l.Listener.Accept()
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			return conn, err
		}
		if !l.release() {
			return nil, err // the server tries again a little later
		}
		l.refuseOne()
	}
}

// refuseOne takes one connection with the descriptor that was spare.
func (l *Listener) refuseOne() {
	d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok || d.SetDeadline(time.Now().Add(refuseWait)) != nil {
		return
	}
	defer d.SetDeadline(time.Time{})
	conn, err := l.Listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	if l.refuse != nil && conn.SetDeadline(time.Now().Add(refuseWrite)) == nil {
		l.refuse(conn)
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.release()
	return l.Listener.Close()
}
