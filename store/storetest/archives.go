package storetest

import (
	"bytes"
	"errors"
	"strings"

	"seeder/store/ctrd"
)

func archives(s *suite) {
	const ref = "docker.io/library/storetest-archives:latest"
	img := NewImage(s, ref, 1)
	s.imports(img.OCIArchive(s), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(packed(s, img.OCIArchive(s)), "", ref)
	s.ready(ref, img.Target.Digest)
	s.remove(ref)
	s.imports(img.DockerArchive(s), "", ref)
	if target, err := s.c.Resolve(s.ctx, ref); err != nil {
		s.Error(err)
	} else {
		s.ready(ref, target.Digest)
	}
	s.remove(ref)
	// An archive without a name takes the one that it is given.
	img.Ref = ""
	s.imports(img.OCIArchive(s), ref, ref)
	s.ready(ref, img.Target.Digest)
}

func badArchives(s *suite) {
	const ref = "docker.io/library/storetest-bad:latest"
	img := NewImage(s, ref, 2)
	whole := img.OCIArchive(s)
	unnamed := NewImage(s, "", 2)
	for _, tc := range []struct {
		name    string
		archive []byte
		ref     string
		want    string
	}{
		{"nothing", nil, "", "docker-archive or OCI-layout"},
		{"noise", bytes.Repeat([]byte{7, 1, 200}, 5000), "", "docker-archive or OCI-layout"},
		{"no image in it", tarOf(s, map[string][]byte{"a": []byte("b")}), "", "docker-archive or OCI-layout"},
		{"cut off", whole[:len(whole)/2], "", ""},
		{"layer missing", img.OCIArchive(s, img.Manifests[0].Layers[1].Digest), "", img.Manifests[0].Layers[1].Digest.String()},
		{"no name", unnamed.OCIArchive(s), "", "seeder announce REF --from FILE"},
	} {
		s.Collect(s.T) // what the one before left may complete this one
		names, err := s.c.ImportArchive(s.ctx, bytes.NewReader(tc.archive), tc.ref)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			s.Errorf("%s: %v %v, want %q", tc.name, names, err, tc.want)
		}
		if got := s.names(img.Target.Digest); len(got) > 0 {
			s.Errorf("%s: left the names %v", tc.name, got)
		}
	}
	broken := errors.New("the client went away")
	if _, err := s.c.ImportArchive(s.ctx, &breaks{whole[:len(whole)/2], broken}, ""); !errors.Is(err, broken) || errors.Is(err, ctrd.ErrNotArchive) {
		s.Errorf("broken connection: %v", err)
	}
	s.Collect(s.T)
	for d := range img.Blobs {
		if s.here(d) {
			s.Errorf("blob %s is left behind", d)
		}
	}
	s.noLeases()
}

// breaks is a reader that fails after some bytes.
type breaks struct {
	b   []byte
	err error
}

func (r *breaks) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, r.err
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}
