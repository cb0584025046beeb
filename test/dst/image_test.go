package dst

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
)

// layerBytes are the sizes of layers: most are one chunk, some are a few.
var layerBytes = []int{300, 5_000, 60_000, 300_000, 700_000}

const (
	// largeBytes is the least size of a large layer, and by how much it differs: so many
	// chunks that faults meet an image of which a part is here.
	largeBytes = 3_000_000
	// largeEvery is how many builds there are for each with a large layer.
	largeEvery = 6
)

// archive is a new build of ref, as `docker save` writes it. Builds of one reference
// have a layer in common, others are their own; the bytes depend on its arguments
// alone.
func archive(ref string, build uint64) []byte {
	rng := rand.New(rand.NewPCG(build, 3))
	layers := [][]byte{layer(ref, 20_000, true)}
	for range 1 + rng.IntN(2) {
		layers = append(layers, layer(fmt.Sprintf("%s %d %d", ref, build, len(layers)), layerBytes[rng.IntN(len(layerBytes))], rng.IntN(2) == 0))
	}
	if rng.IntN(largeEvery) == 0 {
		layers = append(layers, layer(fmt.Sprintf("%s %d large", ref, build), largeBytes+rng.IntN(largeBytes), rng.IntN(2) == 0))
	}
	files := map[string][]byte{}
	var order, ids []string
	for _, l := range layers {
		sum := sha256.Sum256(l)
		name := hex.EncodeToString(sum[:])
		files[name+".tar"] = l
		order, ids = append(order, name+".tar"), append(ids, "sha256:"+name)
	}
	config := encode(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	manifest := encode([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": order}})
	files["config.json"], files["manifest.json"] = config, manifest
	return tarOf(append(order, "config.json", "manifest.json"), files)
}

// layer is a tar with one file, of text or of noise.
func layer(name string, size int, text bool) []byte {
	sum := sha256.Sum256([]byte(name))
	rng := rand.NewChaCha8(sum)
	data := make([]byte, size)
	rng.Read(data)
	if text {
		for i := range data {
			data[i] = 'a' + data[i]%4
		}
	}
	return tarOf([]string{"file"}, map[string][]byte{"file": data})
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // programmer error: nothing here fails to encode
	}
	return b
}

func tarOf(order []string, files map[string][]byte) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range order {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			panic(err) // programmer error: a buffer takes everything
		}
		if _, err := w.Write(files[name]); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}
