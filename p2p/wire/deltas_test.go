package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/chunk"
)

var (
	layerA = digest.FromString("a layer")
	layerB = digest.FromString("another layer")
)

// offering offers deltas that become ready one after the other.
type offering struct {
	mu      sync.Mutex
	offers  []chunk.Offer
	changed chan struct{}
	asked   []digest.Digest
}

func (o *offering) Deltas(_ context.Context, seed digest.Digest, bases []digest.Digest, _ bool) ([]chunk.Offer, <-chan struct{}, error) {
	if seed != testSeed {
		return nil, nil, fs.ErrNotExist
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = bases
	return slices.Clone(o.offers), o.changed, nil
}

func (o *offering) ready(i int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.offers[i].Seed = testSeed
	close(o.changed)
	o.changed = make(chan struct{})
}

// TestOffersAreHeldBack: an answer waits for a delta that is being made, but not for one
// that the asker knows, and not forever.
func TestOffersAreHeldBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &offering{changed: make(chan struct{}), offers: []chunk.Offer{
			{Target: layerA, Base: layerB, Kind: chunk.DeltaBytes, After: time.Second},
			{Target: layerB, Base: layerA, Kind: chunk.DeltaDeflate, After: 2 * time.Second},
		}}
		s := &Server{cfg: ServerConfig{Handlers: Handlers{Deltas: o}}}
		ask := func(make bool, known int, most time.Duration) (ready int) {
			t.Helper()
			began := time.Now()
			b, err := s.offers(t.Context(), testSeed, []digest.Digest{layerA}, make, known)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took != most {
				t.Errorf("an answer after %s, want %s", took, most)
			}
			got, err := decodeOffers(b)
			if err != nil || len(got) != 2 {
				t.Fatalf("%+v %v", got, err)
			}
			for _, x := range got {
				if x.Ready() {
					ready++
				}
			}
			return ready
		}
		if n := ask(false, 0, 0); n != 0 {
			t.Errorf("%d are ready", n)
		}
		if n := ask(true, 0, offerWait); n != 0 {
			t.Errorf("%d are ready", n)
		}
		time.AfterFunc(time.Second, func() { o.ready(0) })
		if n := ask(true, 0, time.Second); n != 1 {
			t.Errorf("%d are ready, want 1", n)
		}
		if n := ask(true, 0, 0); n != 1 {
			t.Errorf("%d are ready, want the one that the asker does not know", n)
		}
		time.AfterFunc(3*time.Second, func() { o.ready(1) })
		if n := ask(true, 1, 3*time.Second); n != 2 {
			t.Errorf("%d are ready, want 2", n)
		}
		if _, err := s.offers(t.Context(), layerA, nil, true, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("of an unknown image: %v", err)
		}
	})
}

// TestOffersAreBounded: what cannot be meant is refused, and what is long is cut.
func TestOffersAreBounded(t *testing.T) {
	t.Parallel()
	one := chunk.Offer{Target: layerA, Base: layerB, Kind: chunk.DeltaBytes, Seed: testSeed, Bytes: 7}
	b, err := encodeOffers([]chunk.Offer{one, {Target: layerB, Why: strings.Repeat("x", 1000)}, {Target: layerB, Base: layerA, Kind: chunk.DeltaDeflate, After: 1000 * time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeOffers(b)
	if err != nil || len(got) != 3 || got[0] != one || len(got[1].Why) > maxOfferWhyBytes+len("…") || got[2].After != maxAfter {
		t.Errorf("%+v %v", got, err)
	}
	if b, err = encodeOffers(slices.Repeat([]chunk.Offer{one}, 2*maxOffers)); err != nil || len(b) > maxOfferAll {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if got, err = decodeOffers(b); err != nil || len(got) != maxOffers {
		t.Errorf("%d offers, %v", len(got), err)
	}
	unknown := fmt.Sprintf(`{"deltas":[{"target":%q,"base":%q,"kind":"xz","seed":%q,"bytes":1}]}`, layerA, layerB, testSeed)
	if got, err = decodeOffers([]byte(unknown)); err != nil || len(got) != 1 || got[0].Ready() || got[0].Why == "" {
		t.Errorf("of an unknown kind: %+v %v", got, err)
	}
	for name, text := range map[string]string{
		"no json":  `{`,
		"target":   `{"deltas":[{"target":"sha256:1"}]}`,
		"seed":     fmt.Sprintf(`{"deltas":[{"target":%q,"base":%q,"kind":"bytes","seed":"../x"}]}`, layerA, layerB),
		"no base":  fmt.Sprintf(`{"deltas":[{"target":%q,"kind":"bytes","seed":%q}]}`, layerA, testSeed),
		"negative": fmt.Sprintf(`{"deltas":[{"target":%q,"base":%q,"kind":"bytes","bytes":-1}]}`, layerA, layerB),
		"too many": `{"deltas":[` + strings.Repeat(fmt.Sprintf(`{"target":%q,"why":"x"},`, layerA), maxOffers) + fmt.Sprintf(`{"target":%q,"why":"x"}]}`, layerA),
	} {
		if got, err := decodeOffers([]byte(text)); err == nil {
			t.Errorf("%s: accepted %+v", name, got)
		}
	}
	many := slices.Repeat([]digest.Digest{layerA}, 2*chunk.MaxBases)
	if b, err = encodeBases(many); err != nil || len(b) != 32*chunk.MaxBases {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if back, err := decodeBases(b); err != nil || len(back) != chunk.MaxBases || back[0] != layerA {
		t.Errorf("%v %v", back, err)
	}
	for _, n := range []int{31, 33, 32*chunk.MaxBases + 32} {
		if _, err := decodeBases(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are accepted as digests", n)
		}
	}
}

func FuzzDecodeOffers(f *testing.F) {
	b, err := encodeOffers([]chunk.Offer{{Target: layerA, Base: layerB, Kind: chunk.DeltaBytes, Seed: testSeed, Bytes: 7}, {Target: layerB, Why: "no"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		offers, err := decodeOffers(b)
		if err != nil {
			return
		}
		for _, o := range offers {
			if o.Target.Validate() != nil || o.Ready() && (o.Seed.Validate() != nil || o.Base.Validate() != nil) || o.Bytes < 0 || o.After < 0 || o.After > maxAfter {
				t.Fatalf("accepted %+v", o)
			}
		}
		again, err := encodeOffers(offers)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeOffers(again); err != nil || !slices.Equal(back, offers) {
			t.Fatalf("%+v came back as %+v, %v", offers, back, err)
		}
	})
}

// TestDeltasOverTheWire asks a server, and one that has no deltas.
func TestDeltasOverTheWire(t *testing.T) {
	t.Parallel()
	o := &offering{changed: make(chan struct{}), offers: []chunk.Offer{{Target: layerA, Base: layerB, Kind: chunk.DeltaBytes, Seed: testSeed, Bytes: 7}}}
	h := handlers(&handler{})
	h.Deltas = o
	c, addr := serve(t, h)
	got, err := c.Deltas(t.Context(), addr, testSeed, []digest.Digest{layerB, layerA}, true, 0)
	if err != nil || !slices.Equal(got, o.offers) || !slices.Equal(o.asked, []digest.Digest{layerB, layerA}) {
		t.Errorf("%+v %v, asked with %v", got, err, o.asked)
	}
	if _, err := c.Deltas(t.Context(), addr, layerA, nil, false, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an unknown image: %v", err)
	}
	c, addr = serve(t, handlers(&handler{}))
	if _, err := c.Deltas(t.Context(), addr, testSeed, nil, false, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a node without deltas: %v", err)
	}
	if _, err := c.small(t.Context(), "POST", addr, "/v1/swarms/"+testSeed.String()+"/deltas", bytes.Repeat([]byte{1}, 33), 100); err == nil {
		t.Error("an invalid question is answered")
	}
}
