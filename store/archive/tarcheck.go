package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

const (
	// maxArchiveEntries bounds the entries of an archive: an image has at most 127
	// layers (overlayfs), an archive some hundred images.
	maxArchiveEntries = 100_000
	// maxArchiveNameBytes bounds a name and what a link points to.
	maxArchiveNameBytes = 4096
	// maxArchiveDocBytes bounds the documents that say what is in an archive; they are
	// read into memory.
	maxArchiveDocBytes = 8 << 20
)

// checkedTar passes a tar stream on, without the invalid tags of a manifest.json, and fails
// as soon as an entry is one that no image archive has. Nothing of an archive is ever
// written under its own name, so that no path in it could do harm; but such an archive was
// made by somebody who meant harm, or holds no image. The reader has to be closed; after
// that r is not read any more.
func checkedTar(r io.Reader) *checkedReader {
	pr, pw := io.Pipe()
	c := &checkedReader{PipeReader: pr, done: make(chan struct{})}
	go func() { // ends when r does or when the reader is closed, which waits for it
		defer close(c.done)
		out := &rewriter{to: pw}
		err := checkTar(tar.NewReader(io.TeeReader(r, out)), out, &c.shape)
		if err == nil { // what follows the end of a tar file
			_, err = io.Copy(pw, r)
		}
		pw.CloseWithError(err)
	}()
	return c
}

type checkedReader struct {
	*io.PipeReader
	done  chan struct{}
	shape shape // complete once done is closed
}

func (c *checkedReader) Close() error {
	err := c.PipeReader.Close()
	<-c.done
	return err
}

// refusedError is why an archive is refused.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return e.reason }

func refusef(format string, args ...any) error { return &refusedError{fmt.Sprintf(format, args...)} }

func checkTar(tr *tar.Reader, out *rewriter, s *shape) error {
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return s.refusal()
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
			return tarError(n, err)
		}
		if err != nil {
			return err
		}
		if n == maxArchiveEntries {
			return refusef("it has more than %d entries", n)
		}
		s.note(h)
		if err := checkEntry(h); err != nil {
			if why := s.refusal(); s.rootfs != "" && why != nil { // which has links and devices of all kinds
				return why
			}
			return err
		}
		if name := path.Clean(h.Name); name == "manifest.json" || name == ocispec.ImageIndexFile {
			err := out.replace(name, tr, func(p []byte) ([]byte, error) {
				if name != "manifest.json" {
					return p, nil
				}
				if err := isDirFormat(p); err != nil {
					return nil, err
				}
				p, tags, err := withoutInvalidTags(p)
				s.tags = tags
				return p, err
			})
			if err != nil {
				return err
			}
		}
	}
}

// checkValues refuses a JSON document of too many values.
func checkValues(name string, p []byte) error {
	var values artifact.Values
	_, _ = values.Write(p) // never fails
	if err := values.Check(name); err != nil {
		return &refusedError{err.Error()}
	}
	return nil
}

func checkEntry(h *tar.Header) error {
	if len(h.Name) > maxArchiveNameBytes || len(h.Linkname) > maxArchiveNameBytes {
		return refusef("an entry's name has %d bytes, at most %d", max(len(h.Name), len(h.Linkname)), maxArchiveNameBytes)
	}
	if outside(h.Name) {
		return refusef("entry %q leads out of the archive", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeXGlobalHeader:
	case tar.TypeSymlink: // docker save of old wrote a layer once and linked to it
		if path.IsAbs(h.Linkname) || outside(path.Join(path.Dir(path.Clean(h.Name)), h.Linkname)) {
			return refusef("entry %q links to %q, out of the archive", h.Name, h.Linkname)
		}
	case tar.TypeLink:
		if outside(h.Linkname) {
			return refusef("entry %q links to %q, out of the archive", h.Name, h.Linkname)
		}
	default:
		return refusef("entry %q is of the type %q: want files, directories and links", h.Name, h.Typeflag)
	}
	if doc := path.Base(h.Name); h.Size > maxArchiveDocBytes && (strings.HasSuffix(doc, ".json") || doc == "oci-layout" || doc == "repositories") {
		return refusef("%s has %d bytes, at most %d", h.Name, h.Size, maxArchiveDocBytes)
	}
	return nil
}

// outside reports whether a name of an entry leaves the archive's top.
func outside(name string) bool {
	clean := path.Clean(name)
	return path.IsAbs(name) || clean == ".." || strings.HasPrefix(clean, "../")
}
