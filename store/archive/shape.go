package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/gzip"
	"github.com/pierrec/lz4/v4"
)

// sniffBytes is how much of a stream says what it is.
const sniffBytes = 512

// Where another form is to be turned into one that is read.
const (
	pipeInto = " FILE | seeder announce --from -"
	saveHint = "save the image with `docker save -o FILE IMAGE`"
)

// magics begin what is no tar file, and say what to do about it. xz is left to its
// program: its files may ask for a dictionary of 4 GiB.
var magics = []struct {
	begins []byte
	what   string
}{
	{[]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "it is compressed with xz: xz -dc" + pipeInto},
	{[]byte("PK\x03\x04"), "it is a zip file: unzip -p" + pipeInto},
	{[]byte("7z\xbc\xaf\x27\x1c"), "it is a 7z file: 7z x -so" + pipeInto},
	{[]byte{0xff, 0xfe}, "it is text in UTF-16, as PowerShell's > writes it: " + saveHint},
	{[]byte{0xfe, 0xff}, "it is text in UTF-16, as PowerShell's > writes it: " + saveHint},
	{[]byte("version https://git-lfs"), "it is a pointer of Git LFS, not the file itself: git lfs pull"},
	{[]byte("<!doctype html"), "it is an HTML page, as a failed download leaves it: download the archive again"},
	{[]byte("<html"), "it is an HTML page, as a failed download leaves it: download the archive again"},
	{[]byte("<?xml"), "it is an XML document, as a failed download leaves it: download the archive again"},
	{[]byte("{"), "it is a JSON document: " + saveHint},
}

// compressed are the forms that decompress reads, by how they begin.
var compressed = map[string][]byte{
	"gzip": {0x1f, 0x8b}, "zstd": {0x28, 0xb5, 0x2f, 0xfd}, "bzip2": []byte("BZh"), "lz4": {0x04, 0x22, 0x4d, 0x18},
}

// compression is the form of compression in which head begins, "" where it is none.
func compressionOf(head []byte) string {
	for name, magic := range compressed {
		if bytes.HasPrefix(head, magic) {
			return name
		}
	}
	return ""
}

// decompress returns the tar stream in r: plain, gzip, zstd, bzip2 or lz4, once. What
// is known to be something else is refused with its name. The decoders' memory does
// not depend on r: at most 8 MiB, for zstd the window that containerd allows.
func decompress(r io.Reader) (io.ReadCloser, error) {
	outer := bufio.NewReaderSize(r, sniffBytes)
	head, err := outer.Peek(sniffBytes)
	if len(head) == 0 && err != io.EOF {
		return nil, err
	}
	if err := recognize(head); err != nil {
		return nil, err
	}
	var plain io.ReadCloser
	form := compressionOf(head)
	switch form {
	case "":
		return io.NopCloser(outer), nil
	case "bzip2":
		plain = io.NopCloser(bzip2.NewReader(outer))
	case "lz4":
		plain = io.NopCloser(lz4.NewReader(outer))
	case "gzip":
		// Not by containerd's package: that hands gzip to a program where the host has one
		// (unpigz, igzip), whose errors are its own. A file of somebody starts no process.
		if plain, err = gzip.NewReader(outer); err != nil {
			return nil, err
		}
	default:
		if plain, err = compression.DecompressStream(outer); err != nil {
			return nil, err
		}
	}
	inner := bufio.NewReaderSize(plain, sniffBytes)
	head, _ = inner.Peek(sniffBytes) // its error comes again
	err = recognize(head)
	if again := compressionOf(head); again != "" {
		err = refusef("it is compressed twice, %s within %s: %s -dc%s", again, form, form, pipeInto)
	}
	if err != nil {
		plain.Close()
		return nil, err
	}
	return bothClosed{inner, plain}, nil
}

// bothClosed reads from one and closes the other.
type bothClosed struct {
	io.Reader
	io.Closer
}

// recognize refuses what begins as something that is no tar file.
func recognize(head []byte) error {
	text := bytes.ToLower(bytes.TrimLeft(head, " \t\r\n"))
	for _, m := range magics {
		if bytes.HasPrefix(head, m.begins) || m.begins[0] < 0x80 && bytes.HasPrefix(text, m.begins) {
			return &refusedError{m.what}
		}
	}
	return nil
}

// rootDirs are at the top of a root file system, and not of an image archive.
var rootDirs = []string{"bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr", "var", ".dockerenv"}

// shape is what the names in an archive say of it. One goroutine notes them.
type shape struct {
	image   bool   // index.json or manifest.json at the top
	below   string // a directory that has one of them
	rootfs  string // a name at the top of a root file system
	chart   string // a directory with a Chart.yaml
	entries int
	layout  bool // oci-layout at the top
	tags    []dockerTags
}

func (s *shape) note(h *tar.Header) {
	s.entries++
	name := path.Clean(h.Name)
	top, rest, nested := strings.Cut(name, "/")
	switch base := path.Base(name); {
	case base == "oci-layout" || base == "index.json" || base == "manifest.json":
		if !nested {
			s.image = true
			s.layout = s.layout || base == "oci-layout"
		} else if s.below == "" && top != "blobs" {
			s.below = path.Dir(name)
		}
	case rest == "Chart.yaml":
		s.chart = top
	case slices.Contains(rootDirs, top) && s.rootfs == "":
		s.rootfs = top
	}
}

// refusal says what an archive without an image in it is, nil where its names do not
// tell.
func (s *shape) refusal() error {
	switch {
	case s.image:
		return nil
	case s.below != "" && s.rootfs == "":
		return refusef("it has an image in its directory %q, not at the top: tar -C %s -c . | seeder announce --from -", s.below, s.below)
	case s.rootfs != "":
		return refusef("it is a root file system (it has %q at its top), as docker export writes it, and not an image: %s", s.rootfs, saveHint)
	case s.chart != "":
		return refusef("it is a Helm chart (%s/Chart.yaml), and not an image", s.chart)
	}
	return nil
}

// isDirFormat refuses the manifest.json of skopeo's dir: format. docker save writes a
// list, that format the manifest itself.
func isDirFormat(p []byte) error {
	if bytes.HasPrefix(bytes.TrimLeft(p, " \t\r\n"), []byte("{")) {
		return refusef("it has the format dir: of skopeo and podman: copy the image to docker-archive:FILE or oci-archive:FILE instead")
	}
	return nil
}

// tarError says of an error of the tar reader what it means for an archive of which so
// many entries were read.
func tarError(entries int, err error) error {
	if entries == 0 && errors.Is(err, tar.ErrHeader) {
		return &refusedError{"it is not a tar file at all"}
	}
	return refusef("it has a damaged or oversized header after %d entries", entries)
}
