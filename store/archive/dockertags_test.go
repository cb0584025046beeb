package archive

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/distribution/reference"
)

// FuzzInvalidTags: what is made of a manifest.json is as long, has the same images in the
// same order, and no tag in it is invalid.
func FuzzInvalidTags(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["App:v1","app:v1"],"Layers":["a/layer.tar"]}]`))
	f.Add([]byte(`[{"Config":"<&>\u2028.json","RepoTags":["App:v1"]}, null, {}] trailing`))
	f.Add([]byte("[{\"Config\":\"\xff\xff\xff\xff\xff\",\"RepoTags\":[\"A:1\"]}]"))
	f.Add([]byte(`{"schemaVersion":2}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		out, tags, err := withoutInvalidTags(p)
		if err != nil {
			return
		}
		if len(out) != len(p) {
			t.Fatalf("%d bytes became %d: %q", len(p), len(out), out)
		}
		var was, is []dockerEntry
		if json.NewDecoder(bytes.NewReader(p)).Decode(&was) != nil {
			return
		}
		if err := json.NewDecoder(bytes.NewReader(out)).Decode(&is); err != nil || len(is) != len(was) || len(tags) != len(was) {
			t.Fatalf("%q became %q: %v", p, out, err)
		}
		for i := range is {
			if len(is[i].RepoTags) != tags[i].valid || len(was[i].RepoTags) != tags[i].valid+len(tags[i].invalid) {
				t.Errorf("%q: image %d has the tags %q, said of it %+v", p, i, is[i].RepoTags, tags[i])
			}
			for _, tag := range is[i].RepoTags {
				if _, err := reference.ParseDockerRef(tag); err != nil {
					t.Errorf("%q: %v", tag, err)
				}
			}
			if is[i].Config != was[i].Config || len(is[i].Layers)+len(was[i].Layers) > 0 && !reflect.DeepEqual(is[i].Layers, was[i].Layers) {
				t.Errorf("%+v became %+v", was[i], is[i])
			}
		}
	})
}
