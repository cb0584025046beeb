package wire

import (
	"bufio"
	"bytes"
	"slices"
	"strings"
	"testing"

	"seeder/p2p/swarm"
)

func FuzzReadHaves(f *testing.F) {
	m := swarm.NewBitmap(70)
	m.Set(69)
	f.Add(appendHaves(nil, swarm.Haves{Map: m, New: []int{3, 69}, Complete: true}, 70), 70)
	f.Add(appendMessage(nil, haveKeepAlive, nil), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > swarm.MaxChunks {
			return
		}
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			h, ok, err := readHaves(r, n)
			if err != nil {
				return
			}
			for _, c := range h.New {
				if c < 0 || c >= n {
					t.Fatalf("chunk %d of %d", c, n)
				}
			}
			if ok && h.Map != nil && h.Map.Count() > n {
				t.Fatalf("%d chunks of %d", h.Map.Count(), n)
			}
		}
	})
}

func FuzzDecodePeers(f *testing.F) {
	b, _ := encodePeers([]swarm.Peer{{Name: "a", Address: "10.0.0.1:1"}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if peers, err := decodePeers(b); err == nil {
			for _, p := range peers {
				if checkAddress(p.Address) != nil || p.Name == "" {
					t.Fatalf("accepted %+v", p)
				}
			}
		}
		if p, err := decodePeer(b); err == nil && checkAddress(p.Address) != nil {
			t.Fatalf("accepted %+v", p)
		}
	})
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add([]byte{1, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		recs, bad, err := decodeRecords(b)
		if err == nil && len(b) > 0 && len(recs)+bad == 0 {
			t.Fatal("bytes without a record and without an error")
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("sha256:"+strings.Repeat("a", 64), "12")
	f.Fuzz(func(t *testing.T, d, n string) {
		if got, err := parseDigest(d); err == nil && len(got) != 71 {
			t.Fatalf("accepted %q", d)
		}
		if got, err := parseChunk(n); err == nil && (got < 0 || got >= swarm.MaxChunks) {
			t.Fatalf("accepted %q", n)
		}
	})
}

// FuzzHaves: what is written is read again, whatever the chunks.
func FuzzHaves(f *testing.F) {
	f.Add([]byte{1, 2, 69}, 70)
	f.Add([]byte{0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 || n > swarm.MaxChunks {
			return
		}
		m := swarm.NewBitmap(n)
		var chunks []int
		for i, x := range b {
			c := (int(x) + 251*i) % n
			if !m.Has(c) {
				m.Set(c)
				chunks = append(chunks, c)
			}
		}
		r := bufio.NewReader(bytes.NewReader(appendHaves(nil, swarm.Haves{Map: m, New: chunks, Complete: true}, n)))
		h, ok, err := readHaves(r, n)
		if err != nil || !ok || !slices.Equal(h.Map, m) {
			t.Fatalf("map: got %v %v, want %v", h.Map, err, m)
		}
		if len(chunks) > 0 {
			slices.Sort(chunks)
			if h, _, err = readHaves(r, n); err != nil || !slices.Equal(h.New, chunks) {
				t.Fatalf("new: got %v %v, want %v", h.New, err, chunks)
			}
		}
		if h, _, err = readHaves(r, n); err != nil || !h.Complete {
			t.Fatalf("complete: got %+v %v", h, err)
		}
	})
}
