package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"seeder/docs"
	"seeder/p2p/catalog"
	"seeder/p2p/swarm"
	"seeder/store/chunk"
)

// TestVectors: streams, registrations and bounds are what docs/protocol.md says.
func TestVectors(t *testing.T) {
	t.Parallel()
	const n = 12
	v := docs.Protocol(t, "haves")
	held := chunk.NewBitmap(n)
	for _, c := range []int{0, 3, 8, 11} {
		held.Set(c)
	}
	for key, h := range map[string]swarm.Haves{"map": {Map: held}, "new": {New: []int{1, 2, 10}}, "complete": {Complete: true}} {
		v.IsHex(key, appendHaves(nil, h, n))
		if got, ok, err := readHaves(bufio.NewReader(bytes.NewReader(v.Hex(key))), n); !ok || err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("%s reads as %+v, %v, %v", key, got, ok, err)
		}
	}
	v.IsHex("keep-alive", appendMessage(nil, haveKeepAlive, nil))

	v = docs.Protocol(t, "peers")
	p, err := decodePeer([]byte(v.Text("registration")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodePeers([]swarm.Peer{p})
	if err != nil {
		t.Fatal(err)
	}
	v.Is("answer", string(b))

	record := docs.Protocol(t, "record").Hex("record")
	answer := docs.Protocol(t, "catalog-answer").Hex("begins")
	got, bad, err := decodeRecords(append(answer, record...))
	if err != nil || bad != 0 || len(got) != 1 {
		t.Errorf("the answer of /v1/catalog reads as %v, %d bad, %v", got, bad, err)
	}

	v = docs.Protocol(t, "bounds")
	for key, bound := range map[string]int{
		"answer-of-state": MaxStateBytes, "answer-of-catalog": MaxCatalogBytes, "seed-index": MaxSeedBytes,
		"registration-and-answer": maxPeersBytes, "peers": maxPeers, "node-name": maxNameBytes, "address": maxAddressBytes,
		"request-header": maxHeaderBytes, "have-message": maxHaveBytes, "record": catalog.MaxRecordBytes,
		"frame": chunk.MaxBytes, "chunks": chunk.MaxChunks, "connections": maxConns, "connections-from-one-address": maxConnsPerHost,
		"unproved-connections": maxStrange, "unproved-connections-from-one-address": maxStrangePerHost, "bytes-of-a-handshake": maxHandshakeBytes,
		"catalog-request": catalog.BucketsBytes, "echo": EchoBytes, "references-of-held": MaxHeldRefs,
	} {
		v.Is(key, fmt.Sprint(bound))
	}
}

// TestPathsAreDocumented: docs/protocol.md has every path that is answered.
func TestPathsAreDocumented(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("server.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	routes := regexp.MustCompile(`HandleFunc\("([^"]+)"`).FindAllSubmatch(source, -1)
	if len(routes) < 7 {
		t.Fatalf("%d routes found in server.go", len(routes))
	}
	for _, r := range routes {
		if !strings.Contains(string(page), "`"+string(r[1])+"`") {
			t.Errorf("docs/protocol.md has no `%s`", r[1])
		}
	}
}
