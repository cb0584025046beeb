package offers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
	"seeder/store/delta"
)

const (
	// alike is the least likeness of a base. One that has nothing in common with the layer
	// costs a build for nothing.
	alike = 0.1
	// asLike is how much less like the layer than the most similar base one may be that more
	// hosts have: one delta for many hosts is made once, and they give it to each other.
	// Sketches tell no smaller difference.
	asLike = 0.05
	// maxTried bounds the bases whose likeness is looked at for one layer.
	maxTried = 16
	// maxAsked and maxNamed bound the images and the bases by which hosts are counted.
	maxAsked = 8
	maxNamed = 1024
)

// asked is how many hosts asked for deltas of an image, by the bases that they named. Each asks
// once without having any made.
type asked struct {
	image digest.Digest
	hosts map[digest.Digest]int
}

// count notes which bases a host named. The mutex is held.
func (m *Maker) count(image digest.Digest, bases []digest.Digest) {
	at := slices.IndexFunc(m.asked, func(a asked) bool { return a.image == image })
	a := asked{image, map[digest.Digest]int{}}
	if at >= 0 {
		a = m.asked[at]
		m.asked = slices.Delete(m.asked, at, at+1)
	}
	for _, d := range bases[:min(len(bases), chunk.MaxBases)] {
		if _, known := a.hosts[d]; known || len(a.hosts) < maxNamed {
			a.hosts[d]++
		}
	}
	if m.asked = append(m.asked, a); len(m.asked) > maxAsked {
		m.asked = m.asked[1:]
	}
}

// hosts says how many hosts that asked for deltas of an image have a base.
func (m *Maker) hosts(image digest.Digest) func(base digest.Digest) int {
	return func(base digest.Digest) int {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, a := range m.asked {
			if a.image == image {
				return a.hosts[base]
			}
		}
		return 0
	}
}

// Choose finds the base that is most like a layer, empty where none is, or where the layer
// is not here. Of equal ones it is the first; at most maxTried that are here are looked at.
func (m *Maker) Choose(ctx context.Context, layer digest.Digest, bases []digest.Digest) (base digest.Digest, kind delta.Kind, err error) {
	return m.choose(ctx, layer, bases, func(digest.Digest) int { return 0 })
}

// choose is Choose. Of bases that are nearly as like the layer it takes the one that most hosts
// have.
func (m *Maker) choose(ctx context.Context, layer digest.Digest, bases []digest.Digest, hosts func(digest.Digest) int) (base digest.Digest, kind delta.Kind, err error) {
	select {
	case m.looking <- struct{}{}:
		defer func() { <-m.looking }()
	case <-ctx.Done():
		return "", 0, context.Cause(ctx)
	}
	want, head, err := m.look(ctx, layer)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, nil // this host does not have it either
	}
	if err != nil {
		return "", 0, err
	}
	type candidate struct {
		base digest.Digest
		kind delta.Kind
		like float64
	}
	var found []candidate
	best, tried := alike, 0
	for _, d := range bases {
		if tried == maxTried {
			break
		}
		s, baseHead, err := m.look(ctx, d)
		if errors.Is(err, fs.ErrNotExist) {
			continue // this host does not have it
		}
		if err != nil {
			return "", 0, err
		}
		tried++
		k, err := delta.KindOf(baseHead, head)
		if err != nil {
			continue
		}
		found = append(found, candidate{d, k, want.likeness(s)})
		best = max(best, found[len(found)-1].like)
	}
	most, like := -1, 0.0
	for _, c := range found {
		if c.like < max(alike, best-asLike) {
			continue
		}
		if n := hosts(c.base); n > most || n == most && c.like > like {
			base, kind, most, like = c.base, c.kind, n, c.like
		}
	}
	return base, kind, nil
}

// look is the sketch and the first bytes of a layer.
func (m *Maker) look(ctx context.Context, d digest.Digest) (sketch, []byte, error) {
	r, err := m.cfg.Open(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	head := make([]byte, min(r.Size(), 8))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read layer %s: %w", d, err)
	}
	m.mu.Lock()
	s, known := m.sketches[d]
	m.mu.Unlock()
	if !known {
		s = sketchOf(io.NewSectionReader(r, 0, r.Size()))
		m.mu.Lock()
		if len(m.sketches) >= maxSketches {
			clear(m.sketches)
		}
		m.sketches[d] = s
		m.mu.Unlock()
	}
	return s, head, nil
}
