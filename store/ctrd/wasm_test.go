package ctrd_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestWasmArtifacts: an OCI artifact of WebAssembly with the config type of its own that
// containerd's shims run is taken from an archive; one with another config type is left
// out by name, and the image beside it is named.
func TestWasmArtifacts(t *testing.T) {
	t.Parallel()
	c := faulty(t, &faults{})
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}
	blob := func(mediaType, s string) string {
		d := digest.FromString(s)
		files["blobs/sha256/"+d.Encoded()] = s
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d`, mediaType, d, len(s))
	}
	manifest := func(name, configType, config, layerType, layer string) string {
		m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s},"layers":[%s}]}`,
			blob(configType, config), blob(layerType, layer))
		return blob("application/vnd.oci.image.manifest.v1+json", m) + fmt.Sprintf(`,"annotations":{"io.containerd.image.name":%q}}`, name)
	}
	layer := tarOf(t, map[string]string{"app": "app"})
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromString(layer))
	const image, wasm, other = "docker.io/library/app:v1", "docker.io/library/module:v1", "docker.io/library/other:v1"
	files["index.json"] = fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s,%s,%s]}`,
		manifest(image, "application/vnd.oci.image.config.v1+json", config, "application/vnd.oci.image.layer.v1.tar", layer),
		manifest(wasm, "application/vnd.wasm.config.v0+json", `{"architecture":"wasm","os":"wasip1"}`, "application/wasm", "\x00asm"),
		manifest(other, "application/vnd.example.wasm.config", `{}`, "application/wasm", "\x00asm"))
	got, err := importAll(t, c, []byte(tarOf(t, files)))
	if err != nil || !slices.Equal(got.Names, []string{image, wasm}) || len(got.LeftOut) != 1 || !strings.Contains(got.LeftOut[0], other+", an artifact (config application/vnd.example.wasm.config)") {
		t.Errorf("named %v, left out %q, %v", got.Names, got.LeftOut, err)
	}
}
