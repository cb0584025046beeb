package archive

import (
	"errors"
	"io"
)

// roomEvery is after how many bytes of an archive it is asked whether there is room
// for more.
const roomEvery = 64 << 20

// roomReader ends the reading of an archive before the disk is full.
type roomReader struct {
	r    io.Reader
	room func() error
	left int64 // bytes until it is asked again
}

func (r *roomReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		if err := r.room(); err != nil {
			return 0, err
		}
		r.left = roomEvery
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	return n, err
}

// sourceReader remembers how the source failed, so that a broken connection is
// not taken for a broken archive.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// or returns how the source failed, else err.
func (s *sourceReader) or(err error) error {
	if s.err != nil {
		return s.err
	}
	return err
}
