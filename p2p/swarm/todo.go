package swarm

import "seeder/store/chunk"

// todo is what is still to fetch. A chunk that is missing is in one of three states: free,
// asked for, or verifying; refresh keeps free in step with the others.
type todo struct {
	missing   chunk.Bitmap // wanted and not held
	left      int          // how many
	free      chunk.Bitmap // missing, not asked for, not being verified, not held back
	verifying chunk.Bitmap
	asked     map[int]int // requests by chunk, without those that are overdue
	largest   int64       // bytes of the largest chunk that has been missing
	small     bool        // what was missing at first is as little as FetchConfig.Small

	held   chunk.Bitmap    // by FetchConfig.Hold
	reheld <-chan struct{} // closed when held is another one
}

func newTodo(c Chunks, small int64, h *Hold) todo {
	t := todo{missing: chunk.NewBitmap(c.Len()), verifying: chunk.NewBitmap(c.Len()), asked: map[int]int{}}
	t.readHeld(c)
	t.hold(h)
	var bytes int64
	t.missing.Both(t.missing, func(i int) bool {
		bytes += c.Bytes(i)
		return true
	})
	t.small = bytes <= small
	return t
}

// readHeld reads again what is held: chunks may come from elsewhere too, and what was
// held may be gone.
func (t *todo) readHeld(c Chunks) {
	n := c.Len()
	wanted, have := c.Wanted(), c.Have()
	for i := range n {
		if wanted.Has(i) && !have.Has(i) {
			t.missing.Set(i)
			t.largest = max(t.largest, c.Bytes(i))
		} else {
			t.missing.Clear(i)
		}
	}
	t.left = t.missing.Count()
}

// hold reads what is held back, and says of all chunks whether they may be asked for.
func (t *todo) hold(h *Hold) {
	t.held, t.reheld = h.read()
	t.free = t.missing.Without(t.held)
	t.verifying.Both(t.free, func(n int) bool { t.free.Clear(n); return true })
	for n := range t.asked {
		t.free.Clear(n)
	}
}

// open is how many of the missing chunks are not held back.
func (t *todo) open() int {
	n := t.left
	t.missing.Both(t.held, func(int) bool { n--; return true })
	return n
}

// refresh says anew whether chunk n may be asked for.
func (t *todo) refresh(n int) {
	if t.missing.Has(n) && !t.held.Has(n) && !t.verifying.Has(n) && t.asked[n] == 0 {
		t.free.Set(n)
	} else {
		t.free.Clear(n)
	}
}

// ask counts a request for chunk n.
func (t *todo) ask(n int) {
	t.asked[n]++
	t.refresh(n)
}

// unask is the end of a request for chunk n, or that it is overdue.
func (t *todo) unask(n int) {
	if t.asked[n]--; t.asked[n] <= 0 {
		delete(t.asked, n)
	}
	t.refresh(n)
}

// verify: chunk n has come and is being verified, until verified.
func (t *todo) verify(n int) {
	t.verifying.Set(n)
	t.refresh(n)
}

// verified: chunk n is held now, or what came was not it.
func (t *todo) verified(n int, ok bool) {
	t.verifying.Clear(n)
	if ok && t.missing.Has(n) {
		t.missing.Clear(n)
		t.left--
	}
	t.refresh(n)
}

// fresh is what is free and held by no partial neighbour.
func (t *todo) fresh(copies []uint16) chunk.Bitmap {
	out := t.free.Clone()
	t.free.Both(t.free, func(n int) bool {
		if copies[n] > 0 {
			out.Clear(n)
		}
		return true
	})
	return out
}

// everything is the set of all n chunks.
func everything(n int) chunk.Bitmap {
	b := chunk.NewBitmap(n)
	for i := range n {
		b.Set(i)
	}
	return b
}
