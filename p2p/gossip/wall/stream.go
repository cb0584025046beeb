package wall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A stream carries one message in each direction, a question and its answer, each
// with its length (4 bytes, big endian) in front. Both are read whole and looked at
// before memberlist sees a byte of them.

const (
	frameHeader = 4
	// streamTimeout bounds a stream: the question, the answer and what memberlist does
	// between them.
	streamTimeout = 10 * time.Second
)

// readFrame reads one message of at most maxStreamBytes. Memory for it grows as it
// arrives.
func readFrame(r io.Reader) ([]byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxStreamBytes {
		return nil, fmt.Errorf("a message of %d bytes, want 1 to %d", n, maxStreamBytes)
	}
	var b bytes.Buffer
	if m, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, fmt.Errorf("message of %d bytes ended after %d: %w", n, m, err)
	}
	return b.Bytes(), nil
}

// stream is a connection as memberlist sees it: Write sends one message, Read gives
// the bytes of one that has passed checkStream. memberlist uses it from one
// goroutine at a time.
type stream struct {
	net.Conn
	answer bool             // what is read is the answer to what was written
	heard  func(msg []byte) // called with what came, once it has passed checkStream; nil: nobody
	in     *bytes.Reader
	wrote  bool
	once   sync.Once
	closed func() // called once, at the first Close
}

var errOneMessage = errors.New("a stream carries one message in each direction")

// receive reads the message of the other side.
func (s *stream) receive() error {
	msg, err := readFrame(s.Conn)
	if err != nil {
		return err
	}
	if err := checkStream(msg, s.answer); err != nil {
		return err
	}
	if s.heard != nil {
		s.heard(msg)
	}
	s.in = bytes.NewReader(msg)
	return nil
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	if s.in == nil {
		if err := s.receive(); err != nil {
			return 0, err
		}
	}
	return s.in.Read(p)
}

// Write implements net.Conn: p is one message.
func (s *stream) Write(p []byte) (int, error) {
	if s.wrote {
		return 0, errOneMessage
	}
	s.wrote = true
	if len(p) > maxStreamBytes {
		return 0, fmt.Errorf("send a message of %d bytes, at most %d", len(p), maxStreamBytes)
	}
	frame := make([]byte, frameHeader, frameHeader+len(p))
	binary.BigEndian.PutUint32(frame, uint32(len(p)))
	if _, err := s.Conn.Write(append(frame, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements net.Conn.
func (s *stream) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.closed)
	return err
}
