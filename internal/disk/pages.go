package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"os"
)

// The layout of a bbolt file, version 2: pages of one size, in the byte order of
// the host. A page is a header (id u64, flags u16, count u16, pages that follow
// u32) and a table of elements, whose keys and values lie where the element says,
// counted from the element itself. Pages 0 and 1 are metas with a checksum: the
// valid one with the higher transaction id names the root of the tree and the list
// of free pages.
const (
	pageHeaderBytes = 16
	elementBytes    = 16 // of leaves and of branches
	bucketBytes     = 16 // of a bucket's value: root u64, sequence u64
	metaBytes       = 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = math.MaxUint64
)

var native = binary.NativeEndian

// pages walks the tree of a bbolt file and believes nothing in it.
type pages struct {
	f        *os.File
	pageSize uint64
	high     uint64 // pages from here on are not in use
	seen     map[uint64]bool
}

// checkPages reports whether every page that bbolt would follow is in the file,
// is what it says, is there once, and keeps its elements inside itself.
func checkPages(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%v, not a file", st.Mode().Type())
	}
	m, err := newestMeta(f, st.Size())
	if err != nil {
		return err
	}
	p := pages{f: f, pageSize: m.pageSize, high: m.high, seen: map[uint64]bool{0: true, 1: true}}
	if p.high > uint64(st.Size())/p.pageSize {
		return fmt.Errorf("%d bytes, not %d pages of %d", st.Size(), p.high, p.pageSize)
	}
	if err := p.freelist(m.freelist); err != nil {
		return err
	}
	return p.walk(m.root, true)
}

type meta struct {
	pageSize, root, freelist, high, txid uint64
}

// newestMeta finds the meta page that bbolt will use.
func newestMeta(f *os.File, size int64) (meta, error) {
	first, ok := readMeta(f, 0)
	if ok {
		if second, ok := readMeta(f, int64(first.pageSize)); ok && second.txid > first.txid {
			return second, nil
		}
		return first, nil
	}
	for at := int64(1 << 10); at < min(size, 1<<25); at <<= 1 {
		if m, ok := readMeta(f, at); ok && m.pageSize == uint64(at) {
			return m, nil
		}
	}
	return meta{}, errors.New("neither of its first pages is one of a database")
}

func readMeta(f *os.File, pageAt int64) (meta, bool) {
	var b [metaBytes]byte
	if _, err := f.ReadAt(b[:], pageAt+pageHeaderBytes); err != nil {
		return meta{}, false
	}
	sum := fnv.New64a()
	sum.Write(b[:56])
	m := meta{
		pageSize: uint64(native.Uint32(b[8:])), root: native.Uint64(b[16:]), freelist: native.Uint64(b[32:]),
		high: native.Uint64(b[40:]), txid: native.Uint64(b[48:]),
	}
	valid := native.Uint32(b[:]) == boltMagic && native.Uint32(b[4:]) == boltVersion && native.Uint64(b[56:]) == sum.Sum64() &&
		m.pageSize >= 1<<10 && m.pageSize <= 1<<24 && m.pageSize&(m.pageSize-1) == 0
	return m, valid
}

// page reads a page with those that belong to it, each of them only once.
func (p *pages) page(id uint64) ([]byte, error) {
	var head [pageHeaderBytes]byte
	if id >= p.high {
		return nil, fmt.Errorf("page %d of %d", id, p.high)
	}
	if _, err := p.f.ReadAt(head[:], int64(id*p.pageSize)); err != nil {
		return nil, err
	}
	more := uint64(native.Uint32(head[12:]))
	if native.Uint64(head[:]) != id || more >= p.high-id {
		return nil, fmt.Errorf("page %d says that it is %d to %d", id, native.Uint64(head[:]), native.Uint64(head[:])+more)
	}
	for k := id; k <= id+more; k++ {
		if p.seen[k] {
			return nil, fmt.Errorf("page %d is used twice", k)
		}
		p.seen[k] = true
	}
	b := make([]byte, (1+more)*p.pageSize)
	_, err := p.f.ReadAt(b, int64(id*p.pageSize))
	return b, err
}

// freelist checks the list of free pages. A list that is not kept would have bbolt
// search the tree for it; nobody here opens databases so.
func (p *pages) freelist(id uint64) error {
	if id == noFreelist {
		return errors.New("no list of free pages")
	}
	b, err := p.page(id)
	if err != nil {
		return err
	}
	list, count := b[pageHeaderBytes:], uint64(native.Uint16(b[10:]))
	if count == math.MaxUint16 {
		count, list = native.Uint64(list), list[8:]
	}
	if native.Uint16(b[8:]) != freelistPage || count > uint64(len(list))/8 {
		return fmt.Errorf("invalid page %d: want a list of %d free pages", id, count)
	}
	for k := range count {
		if free := native.Uint64(list[8*k:]); free < 2 || free >= p.high {
			return fmt.Errorf("page %d of %d is listed as free", free, p.high)
		}
	}
	return nil
}

// walk checks a page and those below it. The root of all holds only buckets.
func (p *pages) walk(id uint64, root bool) error {
	b, err := p.page(id)
	if err != nil {
		return err
	}
	switch kind, count := native.Uint16(b[8:]), int(native.Uint16(b[10:])); kind {
	case leafPage:
		return p.leaf(b, root)
	case branchPage:
		for k := range count {
			e, err := element(b, k)
			if err != nil || !holds(e, native.Uint32(e), native.Uint32(e[4:]), 0) {
				return fmt.Errorf("page %d: key %d of %d is not in it", id, k, count)
			}
			if err := p.walk(native.Uint64(e[8:]), root); err != nil {
				return err
			}
		}
		if count == 0 {
			return fmt.Errorf("page %d is a branch to nowhere", id)
		}
		return nil
	default:
		return fmt.Errorf("page %d has the type %#x", id, kind)
	}
}

// leaf checks a leaf, which may be the one of a small bucket, kept in its parent. bbolt's own
// check of the order of keys passes over those.
func (p *pages) leaf(b []byte, root bool) error {
	id, count := native.Uint64(b), int(native.Uint16(b[10:]))
	var before []byte
	for k := range count {
		e, err := element(b, k)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		flags, at, keyBytes, valueBytes := native.Uint32(e), native.Uint32(e[4:]), native.Uint32(e[8:]), native.Uint32(e[12:])
		if flags > 1 || !holds(e, at, keyBytes, valueBytes) {
			return fmt.Errorf("page %d: element %d of %d is not in it", id, k, count)
		}
		key := e[at:][:keyBytes]
		if k > 0 && bytes.Compare(before, key) >= 0 {
			return fmt.Errorf("page %d: the key of element %d is not behind that before it", id, k)
		}
		before = key
		if flags == 0 && root {
			return fmt.Errorf("invalid page %d: element %d of the root is not a bucket", id, k)
		}
		if flags == 0 {
			continue
		}
		value := e[uint64(at)+uint64(keyBytes):][:valueBytes]
		if err := p.bucket(value); err != nil {
			return fmt.Errorf("bucket %d of page %d: %w", k, id, err)
		}
	}
	return nil
}

// bucket checks what the value of a bucket leads to: its own pages, or a leaf that
// follows in the value.
func (p *pages) bucket(value []byte) error {
	if len(value) < bucketBytes {
		return fmt.Errorf("%d bytes", len(value))
	}
	if root := native.Uint64(value); root != 0 {
		return p.walk(root, false)
	}
	inline := value[bucketBytes:]
	if len(inline) < pageHeaderBytes || native.Uint16(inline[8:]) != leafPage {
		return errors.New("no page in it")
	}
	return p.leaf(inline, false)
}

// element is the k-th of a page, with all that follows it there.
func element(page []byte, k int) ([]byte, error) {
	at := pageHeaderBytes + k*elementBytes
	if at+elementBytes > len(page) {
		return nil, fmt.Errorf("element %d is not in it", k)
	}
	return page[at:], nil
}

// holds reports whether a key, which is never empty, and a value lie behind the
// element and on its page.
func holds(e []byte, at, keyBytes, valueBytes uint32) bool {
	return keyBytes > 0 && at >= elementBytes && uint64(at)+uint64(keyBytes)+uint64(valueBytes) <= uint64(len(e))
}
