package stage

import (
	"testing"
)

// disk is a file system of which others use some.
type disk struct{ total, others Use }

// bound leaves a tenth of it free.
func (d *disk) bound(used Use) Use {
	free := d.total.minus(d.others).minus(used)
	return used.plus(free).minus(Use{d.total.Bytes / 10, d.total.Files / 10})
}

func boundDir(t *testing.T, b Bound) *Dir {
	d := openDir(t, t.TempDir(), 1<<30)
	d.bound = b
	return d
}

// TestCacheGivesWay: what others write to the disk is what the cache may not hold
// any more, down to nothing, though somebody has it open; and it comes back.
func TestCacheGivesWay(t *testing.T) {
	t.Parallel()
	fs := &disk{total: Use{100_000, 100}}
	d := boundDir(t, fs.bound)
	f, g := newFixture(t, "idle"), newFixture(t, "open")
	for _, x := range []fixture{f, g} {
		b := openBlob(t, d, x, false)
		for n := range x.raw {
			x.put(t, b, n)
		}
		b.Close()
	}
	open := openBlob(t, d, g, false)
	defer open.Close()
	held, _ := d.Cache()
	if held.Files != 2 || held.Bytes == 0 {
		t.Fatalf("the cache holds %+v", held)
	}
	fs.others.Bytes = fs.total.Bytes - fs.total.Bytes/10 - held.Bytes + 1 // one byte too many
	if freed := d.Shrink(Use{}); freed.Files != 1 {
		t.Errorf("for one byte it gave up %+v", freed)
	}
	g.check(t, open, 0) // what nobody uses went first
	fs.others.Bytes = fs.total.Bytes
	if freed := d.Shrink(Use{}); freed.Files != 1 {
		t.Errorf("on a full disk it gave up %+v", freed)
	}
	if held, _ := d.Cache(); held != (Use{}) || len(d.files(d.cached)) != 0 || open.Have(0) {
		t.Errorf("on a full disk it holds %+v", held)
	}
	g.put(t, open, 0)
	if open.Have(0) {
		t.Error("a frame was cached on a full disk")
	}
	fs.others.Bytes = 0
	g.put(t, open, 0)
	g.check(t, open, 0)
}

// TestCacheGivesInodes: it is one file for each blob.
func TestCacheGivesInodes(t *testing.T) {
	t.Parallel()
	fs := &disk{total: Use{1 << 30, 100}}
	d := boundDir(t, fs.bound)
	f := newFixture(t, "few")
	b := openBlob(t, d, f, false)
	f.put(t, b, 0)
	b.Close()
	fs.others.Files = 90
	d.Shrink(Use{})
	if len(d.files(d.cached)) != 0 {
		t.Error("it keeps a file though the inodes are used up")
	}
}

// TestCacheGivesWhatIsAskedFor: also where the bound would let it hold that.
func TestCacheGivesWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir(), 1<<30)
	f := newFixture(t, "asked")
	b := openBlob(t, d, f, true)
	f.put(t, b, 0)
	b.Finish()
	held, _ := d.Cache()
	if freed := d.Shrink(Use{Bytes: 1}); freed != held {
		t.Errorf("it gave up %+v of %+v", freed, held)
	}
	b.Close()
}

// TestFinishCountsWhatIsThere: the frames of a finished blob are on the disk
// already: they need no more of it to be kept.
func TestFinishCountsWhatIsThere(t *testing.T) {
	t.Parallel()
	fs := &disk{total: Use{100_000, 100}}
	d := boundDir(t, func(used Use) Use { return fs.bound(used) })
	f := newFixture(t, "there")
	b := openBlob(t, d, f, true)
	defer b.Close()
	for n := range f.raw {
		f.put(t, b, n)
	}
	fs.others.Bytes = fs.total.Bytes - fs.total.Bytes/10 - b.end // what is staged is what may be used
	b.Finish()
	f.check(t, b, 0)
}

// TestForget: what is named goes, be it open; what is staged stays.
func TestForget(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir(), 1<<30)
	f, g, h := newFixture(t, "idle"), newFixture(t, "open"), newFixture(t, "staged")
	for _, x := range []fixture{f, g} {
		b := openBlob(t, d, x, false)
		x.put(t, b, 0)
		b.Close()
	}
	open, staged := openBlob(t, d, g, false), openBlob(t, d, h, true)
	defer open.Close()
	defer staged.Close()
	h.put(t, staged, 0)
	held, _ := d.Cache()
	if names := d.Cached(); len(names) != 2 {
		t.Errorf("cached: %v", names)
	}
	if freed := d.Forget(Name(f.info), Name(g.info), Name(h.info)); freed != held {
		t.Errorf("freed %+v of %+v", freed, held)
	}
	if open.Have(0) || len(d.Cached()) != 0 {
		t.Error("something is left")
	}
	h.check(t, staged, 0)
}
