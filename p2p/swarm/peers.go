package swarm

import (
	"context"
	"slices"
	"time"

	"seeder/store/chunk"
)

// maxKnown bounds the peers that a fetch remembers.
const maxKnown = 1024

// peers is who a fetch knows, whom it follows, and what those hold. copies counts what
// the neighbours in it hold that are not complete: who changes a neighbour's have does
// it by holds, lacks and uncount.
type peers struct {
	known      map[string]*known // by name, neighbours or not
	neighbours []*neighbour
	copies     []uint16                // partial neighbours that hold each chunk
	lost       map[string]chunk.Bitmap // what peers held that have left us
}

func newPeers(chunks int) peers {
	return peers{known: map[string]*known{}, copies: make([]uint16, chunks), lost: map[string]chunk.Bitmap{}}
}

// known is a peer that a fetch has heard of.
type known struct {
	peer      Peer
	neighbour bool
	id        string    // that was proved at its address with a bad chunk
	tries     int       // failed have streams in a row
	silent    bool      // the last of them got no answer
	notBefore time.Time // not to be followed before
}

// neighbour is a peer whose haves are followed.
type neighbour struct {
	peer     Peer
	cancel   context.CancelFunc // ends its have stream
	mapped   bool               // its have-map has come
	complete bool               // holds everything there is, or is said to
	gone     bool
	// unfollowed: complete, as we were told, with no room for another have stream, or
	// with too little to fetch for one. It has no news anyway, and may still have a place
	// for us among its requesters.
	unfollowed bool
	have       chunk.Bitmap // counted in copies unless complete
	requests   []*request
	notBefore  time.Time // not to be asked before
	strikes    int
	idleSince  time.Time // since when it has nothing for us; zero: it has
	took       durations
}

// serves reports whether there is a complete neighbour that nothing is held against.
func (ps *peers) serves() bool {
	return slices.ContainsFunc(ps.neighbours, func(nb *neighbour) bool { return nb.complete && nb.strikes == 0 })
}

// answers reports whether nb has said anything: until then it may be gone.
func (nb *neighbour) answers() bool { return nb.mapped || nb.unfollowed }

func (nb *neighbour) pause(now time.Time, d time.Duration) {
	if t := now.Add(d); t.After(nb.notBefore) {
		nb.notBefore = t
	}
}

// slow: peers below a quarter of the median rate get one request at most.
func (nb *neighbour) slow(median time.Duration) bool {
	return nb.took.n > 0 && median > 0 && nb.took.median() > 4*median
}

// makeRoom forgets one known peer that never answered, or has not for long, where there
// are too many: anyone who makes up names keeps none of the others out.
func (ps *peers) makeRoom() bool {
	if len(ps.known) < maxKnown {
		return true
	}
	victim := ""
	for name, k := range ps.known {
		if k.neighbour || k.tries == 0 {
			continue
		}
		if v := ps.known[victim]; v == nil || k.tries > v.tries || k.tries == v.tries && name < victim {
			victim = name
		}
	}
	if victim == "" {
		return false
	}
	delete(ps.known, victim)
	return true
}

// holds counts chunk i as held by nb.
func (ps *peers) holds(nb *neighbour, i int) {
	if !nb.have.Has(i) {
		nb.have.Set(i)
		ps.copies[i]++
	}
}

// uncount takes what nb holds out of copies, which counts partial holders only.
func (ps *peers) uncount(nb *neighbour) {
	if nb.complete {
		return
	}
	nb.have.Both(nb.have, func(i int) bool { ps.copies[i]--; return true })
}

// lacks: nb does not hold what it was said to. -1 stands for all of it.
func (ps *peers) lacks(nb *neighbour, n int) {
	if nb.gone {
		return
	}
	switch {
	case nb.complete && (n < 0 || !nb.mapped):
		nb.complete, nb.have = false, chunk.NewBitmap(len(ps.copies))
	case nb.complete:
		nb.complete = false
		nb.have = nb.have.Clone()
		nb.have.Clear(n)
		nb.have.Both(nb.have, func(i int) bool { ps.copies[i]++; return true })
	case nb.have.Has(n):
		nb.have.Clear(n)
		ps.copies[n]--
	}
}

// forgetLost keeps lost bounded; which one goes does not matter.
func (ps *peers) forgetLost() {
	for name := range ps.lost {
		delete(ps.lost, name)
		return
	}
}

func (ps *peers) answers(name string) bool {
	return slices.ContainsFunc(ps.neighbours, func(nb *neighbour) bool { return nb.peer.Name == name && nb.answers() })
}

// superSeed reports whether complete neighbours are left to choose: not where
// nobody else is about, since then only file order matters, and more than one
// complete neighbour can be asked for different chunks.
func (ps *peers) superSeed() bool {
	for _, nb := range ps.neighbours {
		if !nb.complete {
			return true
		}
	}
	return len(ps.neighbours) < 2
}

// rank is the place of nb among the complete neighbours by name, and over how
// many of them new chunks are divided.
func (ps *peers) rank(nb *neighbour) (rank, classes int) {
	for _, o := range ps.neighbours {
		if o.complete {
			classes++
			if o.peer.Name < nb.peer.Name {
				rank++
			}
		}
	}
	return rank, min(classes, maxClasses)
}
