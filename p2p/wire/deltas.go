package wire

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/internal/text"
	"seeder/store/chunk"
)

// The bounds of questions for deltas. Of what is offered nothing is believed: these bound
// what it can cost.
const (
	maxOffers        = 64
	maxKindBytes     = 16
	maxOfferWhyBytes = 256
	maxOfferAll      = 64 << 10
	maxDeltaSize     = 1 << 40
	// maxAfter bounds how long somebody may say that a delta takes.
	maxAfter = time.Hour
	// offerWait is how long an answer is held back while a delta is being made: less than
	// answerTimeout.
	offerWait = 8 * time.Second
)

// Deltas gives away deltas of layers.
type Deltas interface {
	// Deltas are the offers of layers of the image of seed to a host that has bases. With
	// make, what is not there is made, and changed is closed when one of the offers that are
	// pending has changed.
	Deltas(ctx context.Context, seed digest.Digest, bases []digest.Digest, make bool) (offers []chunk.Offer, changed <-chan struct{}, err error)
}

// offerJSON is one offer as it travels.
type offerJSON struct {
	Target  digest.Digest `json:"target"`
	Base    digest.Digest `json:"base,omitempty"`
	Kind    string        `json:"kind,omitempty"`
	Seed    digest.Digest `json:"seed,omitempty"`
	Bytes   int64         `json:"bytes,omitempty"`
	AfterMS int64         `json:"after_ms,omitempty"`
	Why     string        `json:"why,omitempty"`
}

type offersJSON struct {
	Deltas []offerJSON `json:"deltas"`
}

// deltas answers who asks for deltas; with ?make=1 once one is there, or after a while.
func (s *Server) deltas(w http.ResponseWriter, r *http.Request) {
	seed, err := parseDigest(r.PathValue("seed"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	if s.cfg.Handlers.Deltas == nil {
		s.refuse(w, r, fmt.Errorf("deltas: %w", fs.ErrNotExist))
		return
	}
	in, err := body(w, r, chunk.MaxBases*32)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	bases, err := decodeBases(in)
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	q := r.URL.Query()
	known := 0
	if q.Has("known") {
		if known, err = strconv.Atoi(q.Get("known")); err != nil {
			s.refuse(w, r, fmt.Errorf("%w: known=%q", errBadRequest, q.Get("known")))
			return
		}
	}
	b, err := s.offers(r.Context(), seed, bases, q.Get("make") == "1", known)
	s.send(w, r, b, err)
}

// offers waits with make while one is being made, and no more are ready than are known.
func (s *Server) offers(ctx context.Context, seed digest.Digest, bases []digest.Digest, make bool, known int) ([]byte, error) {
	late := time.NewTimer(offerWait)
	defer late.Stop()
	for {
		offers, changed, err := s.cfg.Handlers.Deltas.Deltas(ctx, seed, bases, make)
		if err != nil {
			return nil, err
		}
		pending, ready := 0, 0
		for _, o := range offers {
			if o.Pending() {
				pending++
			}
			if o.Ready() {
				ready++
			}
		}
		if !make || pending == 0 || ready > known {
			return encodeOffers(offers)
		}
		select {
		case <-changed:
		case <-late.C:
			return encodeOffers(offers)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Deltas asks a node for deltas of layers of the image of seed, as a host that has bases.
// With make it makes what is not there, and the answer may take some seconds: until one is
// there, more than known are ready, or offerWait is over. The error wraps fs.ErrNotExist where the node does not have the image, or knows of no deltas.
func (c *Client) Deltas(ctx context.Context, addr string, seed digest.Digest, bases []digest.Digest, make bool, known int) ([]chunk.Offer, error) {
	path := "/v1/swarms/" + seed.String() + "/deltas"
	if make {
		path += "?make=1&known=" + strconv.Itoa(known)
	}
	in, err := encodeBases(bases)
	if err != nil {
		return nil, err
	}
	b, err := c.small(ctx, http.MethodPost, addr, path, in, maxOfferAll)
	if err != nil {
		return nil, fmt.Errorf("ask %s for deltas: %w", addr, err)
	}
	offers, err := decodeOffers(b)
	if err != nil {
		return nil, fmt.Errorf("ask %s for deltas: %w", addr, err)
	}
	return offers, nil
}

// encodeBases is the raw digests, one after the other.
func encodeBases(bases []digest.Digest) ([]byte, error) {
	var out []byte
	for _, d := range bases[:min(len(bases), chunk.MaxBases)] {
		if _, err := parseDigest(string(d)); err != nil {
			return nil, err
		}
		raw, err := hex.DecodeString(d.Encoded())
		if err != nil {
			return nil, fmt.Errorf("digest %q: %w", d, err)
		}
		out = append(out, raw...)
	}
	return out, nil
}

func decodeBases(b []byte) ([]digest.Digest, error) {
	if len(b)%32 != 0 || len(b) > 32*chunk.MaxBases {
		return nil, fmt.Errorf("%d bytes: want the 32 bytes of each of at most %d digests", len(b), chunk.MaxBases)
	}
	var out []digest.Digest
	for ; len(b) > 0; b = b[32:] {
		out = append(out, digest.NewDigestFromBytes(digest.SHA256, b[:32]))
	}
	return out, nil
}

func encodeOffers(offers []chunk.Offer) ([]byte, error) {
	out := offersJSON{Deltas: []offerJSON{}}
	for _, o := range offers[:min(len(offers), maxOffers)] {
		out.Deltas = append(out.Deltas, offerJSON{
			Target: o.Target, Base: o.Base, Kind: o.Kind, Seed: o.Seed, Bytes: o.Bytes,
			AfterMS: min(o.After, maxAfter).Milliseconds(), Why: text.Clean(o.Why, maxOfferWhyBytes),
		})
	}
	return json.Marshal(out)
}

// decodeOffers reads an answer, and refuses what cannot be meant.
func decodeOffers(b []byte) ([]chunk.Offer, error) {
	var in offersJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("offers: %w", err)
	}
	if len(in.Deltas) > maxOffers {
		return nil, fmt.Errorf("%d offers, at most %d", len(in.Deltas), maxOffers)
	}
	var out []chunk.Offer
	for _, o := range in.Deltas {
		if _, err := parseDigest(string(o.Target)); err != nil {
			return nil, fmt.Errorf("offer: %w", err)
		}
		for _, d := range []digest.Digest{o.Base, o.Seed} {
			if _, err := parseDigest(string(d)); d != "" && err != nil {
				return nil, fmt.Errorf("offer of %s: %w", o.Target, err)
			}
		}
		if o.Why == "" && o.Kind != chunk.DeltaBytes && o.Kind != chunk.DeltaDeflate {
			o = offerJSON{Target: o.Target, Why: "the delta is of a kind that this version does not know"}
		}
		if o.Bytes < 0 || o.Bytes > maxDeltaSize || o.AfterMS < 0 || o.Base == "" && (o.Seed != "" || o.Why == "") {
			return nil, fmt.Errorf("offer of %s: %w", o.Target, errors.New("invalid sizes, or no base"))
		}
		out = append(out, chunk.Offer{
			Target: o.Target, Base: o.Base, Kind: text.Clean(o.Kind, maxKindBytes), Seed: o.Seed, Bytes: o.Bytes,
			After: time.Duration(min(o.AfterMS, maxAfter.Milliseconds())) * time.Millisecond, Why: text.Clean(o.Why, maxOfferWhyBytes),
		})
	}
	return out, nil
}
