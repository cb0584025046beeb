package stage

import (
	"math"
	"os"
	"path/filepath"
)

// Use is what files take of a file system.
type Use struct{ Bytes, Files int64 }

func (u Use) plus(v Use) Use  { return Use{u.Bytes + v.Bytes, u.Files + v.Files} }
func (u Use) minus(v Use) Use { return Use{u.Bytes - v.Bytes, u.Files - v.Files} }

// within reports whether u exceeds limit in neither.
func (u Use) within(limit Use) bool { return u.Bytes <= limit.Bytes && u.Files <= limit.Files }

// Bound says how much the cache may hold now that it holds used: less where
// others need the disk. It is asked often, and must not call the Dir.
type Bound func(used Use) Use

// Unbounded is a limit that nothing exceeds.
var Unbounded = Use{math.MaxInt64 / 2, math.MaxInt64 / 2}

// Fixed bounds the cache by bytes alone.
func Fixed(bytes int64) Bound { return func(Use) Use { return Use{bytes, Unbounded.Files} } }

// Cache is what the cache holds, and how much it may hold now.
func (d *Dir) Cache() (held, limit Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used, d.bound(d.used)
}

// evict counts what the cache holds and removes the least recently used until
// need fits into the limit, too, or nothing is left that nobody uses. Of need,
// onDisk takes space of this file system already. The caller holds the mutex.
func (d *Dir) evict(need, onDisk Use) (limit Use) {
	files := d.files(d.cached)
	d.used = Use{}
	for _, f := range files {
		d.used = d.used.plus(Use{f.bytes, 1})
	}
	limit = d.bound(d.used.plus(onDisk))
	for _, f := range files {
		if d.used.plus(need).within(limit) {
			break
		}
		if d.removeIdle(d.cached, f.name) {
			d.used = d.used.minus(Use{f.bytes, 1})
		}
	}
	return limit
}

// reserve makes room in the cache for need, of which onDisk is on this file system
// already; false where there is no room.
func (d *Dir) reserve(need, onDisk Use) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	limit := d.bound(d.used.plus(onDisk))
	if !d.used.plus(need).within(limit) {
		limit = d.evict(need, onDisk)
	}
	if !d.used.plus(need).within(limit) {
		return false
	}
	d.used = d.used.plus(need)
	return true
}

func (d *Dir) unreserve(u Use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used = d.used.minus(u)
}

// Shrink makes the cache give up what it holds beyond its limit, and need besides:
// what nobody uses first, and then, unlike a frame that asks for room, also what is
// open, which is compressed anew where somebody asks for it. It returns what was
// given up.
func (d *Dir) Shrink(need Use) Use {
	d.mu.Lock()
	held := d.used
	limit := d.bound(held)
	goal := Use{min(limit.Bytes, held.Bytes-need.Bytes), min(limit.Files, held.Files-need.Files)}
	if held.within(goal) {
		d.mu.Unlock()
		return Use{}
	}
	for _, f := range d.files(d.cached) {
		if d.used.within(goal) {
			break
		}
		if d.removeIdle(d.cached, f.name) {
			d.used = d.used.minus(Use{f.bytes, 1})
		}
	}
	open := d.inUse()
	d.mu.Unlock()
	for _, b := range open {
		if now, _ := d.Cache(); now.within(goal) {
			break
		}
		b.discard()
	}
	now, _ := d.Cache()
	return held.minus(now)
}

// inUse are the blobs that somebody has open. The caller holds the mutex.
func (d *Dir) inUse() []*Blob {
	var out []*Blob
	for _, b := range d.blobs {
		if b.users > 0 {
			out = append(out, b)
		}
	}
	return out
}

// Cached names the blobs of which the cache holds frames.
func (d *Dir) Cached() []string { return d.names(d.cached) }

// Forget removes what the cache holds of the blobs of these names, also what is
// open, and returns what that freed.
func (d *Dir) Forget(names ...string) Use {
	var freed Use
	for _, name := range names {
		d.mu.Lock()
		b := d.blobs[name]
		if b == nil || b.users == 0 {
			freed = freed.plus(d.removeCached(name))
			d.mu.Unlock()
			continue
		}
		d.mu.Unlock()
		freed = freed.plus(b.discard())
	}
	return freed
}

// removeCached removes a file of the cache that nobody uses. The caller holds the
// mutex.
func (d *Dir) removeCached(name string) Use {
	info, err := os.Stat(filepath.Join(d.cached, name+suffix))
	if err != nil || !d.removeIdle(d.cached, name+suffix) {
		return Use{}
	}
	u := Use{info.Size(), 1}
	d.used = d.used.minus(u)
	return u
}

// discard removes the frames of a blob where they are cache. Open readers keep
// theirs until they are closed.
func (b *Blob) discard() Use {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.cached || b.file == nil || !b.dir.remove(filepath.Join(b.dir.cached, b.name+suffix)) {
		return Use{}
	}
	u := Use{b.end, 1}
	b.file.release()
	b.file = nil
	b.forget()
	b.dir.unreserve(u)
	return u
}
