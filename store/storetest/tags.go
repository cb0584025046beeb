package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// dockerOf is one docker-archive of several images, each with its tags.
func (p *producer) dockerOf(tags ...[]string) []byte {
	var entries []dockerEntry
	var files []file
	for i, tags := range tags {
		img := p.image()
		e := dockerEntry{Config: fmt.Sprint(i, ".json"), RepoTags: tags}
		files = append(files, file{name: e.Config, data: img.Blobs[img.Manifests[0].Config.Digest]})
		for k, l := range p.plain(img) {
			e.Layers = append(e.Layers, fmt.Sprint(i, "/", k, ".tar"))
			files = append(files, file{name: e.Layers[k], data: l})
		}
		entries = append(entries, e)
	}
	return tarFiles(p.t, append(files, jsonFile(p.t, "manifest.json", entries))...)
}

// invalidTags: a tag of a docker-archive that is not an image reference is left out and
// named; it keeps no other image from being imported.
func invalidTags(s *suite) {
	p := &producer{t: s.T, seed: 700}
	const good, other, given = "docker.io/library/storetest-good:v1", "docker.io/library/storetest-other:v1", "docker.io/library/storetest-given:v1"
	three := p.dockerOf([]string{"MyApp:v1", good, "storetest-good:" + strings.Repeat("a", 129)}, []string{"Only<&>Upper:v1"}, []string{other})
	one := p.dockerOf([]string{"MyApp:v1", "Again:v1"})
	for _, tc := range []struct {
		name    string
		archive []byte
		ref     string
		names   []string
		leftOut []string
	}{
		{"all", three, "", []string{good, other}, []string{
			`the tag "MyApp:v1", which is not an image reference: the repository has capitals`,
			`the tag "storetest-good:aaa`, `"Only<&>Upper:v1", which is not an image reference`}},
		{"one of them", three, good, []string{good}, nil},
		{"the only image, with a name given", one, given, []string{given}, nil},
	} {
		s.Cleanup(func() { s.remove(tc.names...) })
		got, err := importInto(s.ctx, s.c, bytes.NewReader(tc.archive), tc.ref)
		if err != nil || !slices.Equal(got.Names, tc.names) || !inOrder(got.LeftOut, tc.leftOut) {
			s.Errorf("%s: %v, left out %q, %v; want %v, %q", tc.name, got.Names, got.LeftOut, err, tc.names, tc.leftOut)
		}
		for _, ref := range got.Names {
			if target, err := s.c.Images.Resolve(s.ctx, ref); err != nil {
				s.Error(err)
			} else {
				s.ready(ref, target.Digest)
			}
		}
		s.remove(tc.names...)
	}
	s.noLeases()
}
