package offers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"seeder/internal/disk"
	"seeder/store/chunk"
)

// building begins the names of the files of builds: a crash leaves one.
const building = "building-"

// bookName is the file of the book. It is small: one line for each delta that is kept.
const bookName = "deltas.json"

// maxKept bounds the deltas that are kept.
const maxKept = 128

// maxImages bounds the images for which one delta is kept.
const maxImages = 16

// entry is one delta that is kept. Its bytes are with the frames of images.
type entry struct {
	// Images are the seed indexes of those that it was used for, the last one at the end.
	Images []digest.Digest `json:"images"`

	Base  digest.Digest `json:"base"`
	Layer digest.Digest `json:"layer"`
	Seed  digest.Digest `json:"seed"` // of the delta
	Kind  string        `json:"kind"`
	Bytes int64         `json:"bytes"`
	// Fetched: it comes, or came, from another host.
	Fetched bool `json:"fetched,omitempty"`
}

func (e entry) validate() error {
	if len(e.Images) == 0 || len(e.Images) > maxImages {
		return fmt.Errorf("a delta of %d images", len(e.Images))
	}
	for _, d := range append([]digest.Digest{e.Base, e.Layer, e.Seed}, e.Images...) {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("invalid sha256 digest %q", d)
		}
	}
	if e.Kind != chunk.DeltaBytes && e.Kind != chunk.DeltaDeflate {
		return fmt.Errorf("a delta of kind %q", e.Kind)
	}
	if e.Bytes < 0 {
		return fmt.Errorf("a delta of %d bytes", e.Bytes)
	}
	return nil
}

// book is the list of the deltas that are kept, on disk: after a restart they are offered
// again. It is safe for concurrent use.
type book struct {
	path string
	log  *slog.Logger

	mu   sync.Mutex
	list []entry // the one that was used last at the end
}

// openBook reads the book, and removes what a crash has left. One that is damaged is begun
// anew: deltas can be built again.
func openBook(dir string, log *slog.Logger) (*book, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of deltas: %w", err)
	}
	if err := disk.RemoveUnfinished(dir); err != nil {
		return nil, fmt.Errorf("remove unfinished files of deltas: %w", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look through the directory of deltas: %w", err)
	}
	for _, f := range left {
		if strings.HasPrefix(f.Name(), building) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, fmt.Errorf("remove an unfinished delta: %w", err)
			}
		}
	}
	b := &book{path: filepath.Join(dir, bookName), log: log}
	p, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of deltas: %w", err)
	}
	if err := json.Unmarshal(p, &b.list); err == nil && len(b.list) <= maxKept && !slices.ContainsFunc(b.list, func(e entry) bool { return e.validate() != nil }) {
		return b, nil
	}
	log.Warn("the list of deltas is damaged; they are made again when they are needed", "path", b.path)
	b.list = nil
	return b, nil
}

// find is the entry of a pair.
func (b *book) find(p pair) (entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.list {
		if (pair{e.Base, e.Layer}) == p {
			return e, true
		}
	}
	return entry{}, false
}

// bytes is the size of all deltas.
func (b *book) bytes() (sum int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.list {
		sum += e.Bytes
	}
	return sum
}

// add notes a delta. Where there are too many the one that was used the longest ago goes.
func (b *book) add(e entry) error {
	if err := e.validate(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.index(e); at >= 0 && b.list[at].Seed == e.Seed { // other images make use of it
		for _, image := range b.list[at].Images {
			if len(e.Images) < maxImages && !slices.Contains(e.Images, image) {
				e.Images = append([]digest.Digest{image}, e.Images...)
			}
		}
	}
	b.list = append(b.without(e), e)
	if len(b.list) > maxKept {
		b.list = b.list[1:]
	}
	return b.write()
}

// use notes that image makes use of a delta. The order alone is not written.
func (b *book) use(e entry, image digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.index(e)
	if at < 0 {
		return
	}
	e = b.list[at]
	b.list = append(b.without(e), e)
	if slices.Contains(e.Images, image) {
		return
	}
	e.Images = append(slices.Clone(e.Images), image)
	e.Images = e.Images[max(0, len(e.Images)-maxImages):]
	b.list[len(b.list)-1] = e
	if err := b.write(); err != nil {
		b.log.Warn("failed to write the list of deltas", "err", err)
	}
}

// index is where a pair is in the list, -1 where it is not. The mutex is held.
func (b *book) index(e entry) int {
	return slices.IndexFunc(b.list, func(o entry) bool { return o.Base == e.Base && o.Layer == e.Layer })
}

// drop forgets a delta.
func (b *book) drop(e entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = b.without(e)
	if err := b.write(); err != nil {
		b.log.Warn("failed to write the list of deltas", "err", err)
	}
}

// without is the list without a pair. The mutex is held.
func (b *book) without(e entry) []entry {
	return slices.DeleteFunc(slices.Clone(b.list), func(o entry) bool { return o.Base == e.Base && o.Layer == e.Layer })
}

// tidy forgets the deltas of images that are not among those given, and returns the seed
// indexes of the others.
func (b *book) tidy(images []digest.Digest) (seeds []digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.list)
	b.list = slices.DeleteFunc(b.list, func(e entry) bool {
		return !slices.ContainsFunc(e.Images, func(image digest.Digest) bool { return slices.Contains(images, image) })
	})
	if len(b.list) != before {
		if err := b.write(); err != nil {
			b.log.Warn("failed to write the list of deltas", "err", err)
		}
	}
	for _, e := range b.list {
		seeds = append(seeds, e.Seed)
	}
	return seeds
}

// write writes the list. The mutex is held.
func (b *book) write() error {
	p, err := json.Marshal(b.list)
	if err != nil {
		return fmt.Errorf("list of deltas: %w", err)
	}
	if err := disk.WriteFile(b.path, p); err != nil {
		return fmt.Errorf("write the list of deltas: %w", err)
	}
	return nil
}
