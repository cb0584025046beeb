package storetest

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rot changes one byte in the middle of a blob's file, as a disk does that fails.
func (s *suite) rot(d digest.Digest) {
	s.Helper()
	path := filepath.Join(s.Blobs, d.Encoded())
	st, err := os.Stat(path)
	if err != nil {
		s.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		s.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // the file stays, and with it who has it open
	if err != nil {
		s.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		s.Fatal(err)
	}
	if err := f.Close(); err != nil {
		s.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		s.Fatal(err)
	}
}

// labelsOf are the labels of a blob.
func (s *suite) labelsOf(d digest.Digest) map[string]string {
	s.Helper()
	info, err := s.cl.ContentStore().Info(s.ctx, d)
	if err != nil {
		s.Fatal(err)
	}
	return info.Labels
}

// importHealsDamage: the good bytes of an archive take the place of a damaged copy that
// containerd has, of whatever kind, known or not. What the damaged blob kept stays, also
// where the archive does not have it.
func importHealsDamage(s *suite) {
	const ref, docker = "docker.io/library/storetest-rotten:latest", "docker.io/library/storetest-rotten-docker:latest"
	img := NewIndex(s, ref, 60, s.c.Conn.Platform(), "linux/s390x")
	own, foreign := img.Manifests[0], img.Manifests[1]
	s.imports(img.OCIArchive(s), "", ref)
	absent := []digest.Digest{foreign.Descriptor.Digest, foreign.Config.Digest, foreign.Layers[0].Digest, foreign.Layers[1].Digest}
	part := img.OCIArchive(s, absent...)
	for what, d := range map[string]digest.Digest{
		"index": img.Target.Digest, "manifest": own.Descriptor.Digest, "config": own.Config.Digest, "layer": own.Layers[1].Digest,
	} {
		for _, known := range []bool{false, true} {
			s.rot(d)
			if known {
				s.c.Content.MarkDamaged(d, s.c.Files.Stamp(s.ctx, d))
			}
			s.heals(what, d, func() { s.imports(part, "", ref) })
			s.ready(ref, img.Target.Digest)
			s.Collect(s.T)
			for _, d := range absent {
				if !s.here(d) {
					s.Fatalf("%s healed: blob %s, which is not in the archive, is gone", what, d)
				}
			}
		}
	}

	// Of a docker-archive containerd's importer makes the manifest.
	one := NewImage(s, docker, 61)
	s.imports(one.DockerArchive(s), "", docker)
	target, err := s.c.Images.Resolve(s.ctx, docker)
	if err != nil {
		s.Fatal(err)
	}
	var m ocispec.Manifest
	s.document(target.Digest, &m)
	for what, d := range map[string]digest.Digest{
		"docker's manifest": target.Digest, "docker's config": m.Config.Digest, "docker's layer": m.Layers[0].Digest,
	} {
		s.rot(d)
		s.heals(what, d, func() { s.imports(one.DockerArchive(s), "", docker) })
		s.ready(docker, target.Digest)
	}
	s.remove(docker)
	s.Collect(s.T)

	// The importer takes a layer that is here in a compressed form, unless that is damaged.
	s.imports(one.OCIArchive(s), "", docker)
	gz := one.Manifests[0].Layers[1].Digest
	_, err = s.cl.ContentStore().Update(s.ctx, content.Info{Digest: gz, Labels: map[string]string{labels.LabelUncompressed: one.Manifests[0].DiffIDs[1].String()}},
		"labels."+labels.LabelUncompressed)
	if err != nil {
		s.Fatal(err)
	}
	s.rot(gz)
	s.imports(one.DockerArchive(s), "", docker)
	if target, err = s.c.Images.Resolve(s.ctx, docker); err != nil {
		s.Fatal(err)
	}
	s.document(target.Digest, &m)
	if m.Layers[1].Digest != one.Manifests[0].DiffIDs[1] {
		s.Errorf("the manifest has the layer %s, want that of the archive", m.Layers[1].Digest)
	}
	s.ready(docker, target.Digest)
	s.noLeases()
}

// rewrittenKeeps: a manifest or index that is written again under a name that has it keeps
// what it names, also where the writing ends there, as in a crash, and the lease is gone.
func rewrittenKeeps(s *suite) {
	const ref = "docker.io/library/storetest-rewritten:latest"
	img := NewIndex(s, ref, 62, s.c.Conn.Platform(), "linux/s390x")
	s.imports(img.OCIArchive(s), "", ref)
	for what, desc := range map[string]ocispec.Descriptor{"index": img.Target, "manifest": img.Manifests[1].Descriptor} {
		ways := []bool{false}
		if s.c.Conn.StoreOnly() { // else the daemon is on another host, whose files are not seen
			ways = append(ways, true)
		}
		for _, gone := range ways {
			ctx, release, err := s.c.Leases.Take(s.ctx, "storetest-rewritten")
			if err != nil {
				s.Fatal(err)
			}
			if gone {
				err = os.Remove(filepath.Join(s.Blobs, desc.Digest.Encoded()))
			} else {
				s.rot(desc.Digest)
				s.c.Content.MarkDamaged(desc.Digest, s.c.Files.Stamp(s.ctx, desc.Digest))
				err = s.c.Content.RemoveDamaged(ctx, desc.Digest)
			}
			if err != nil {
				s.Fatal(err)
			}
			if err := s.c.Content.WriteWhole(ctx, desc, img.Blobs[desc.Digest], nil); err != nil {
				s.Fatal(err)
			}
			if err := release(s.ctx); err != nil {
				s.Fatal(err)
			}
			s.Collect(s.T)
			for d := range img.Blobs {
				if !s.here(d) {
					s.Fatalf("the %s was written again (its file gone: %v): blob %s is gone", what, gone, d)
				}
			}
		}
	}
}

// document decodes a JSON blob as its file is.
func (s *suite) document(d digest.Digest, v any) {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(s.Blobs, d.Encoded()))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// heals expects that a damaged blob is whole after again, with the labels that it had.
func (s *suite) heals(what string, d digest.Digest, again func()) {
	s.Helper()
	labels := s.labelsOf(d)
	again()
	b, err := os.ReadFile(filepath.Join(s.Blobs, d.Encoded()))
	if err != nil || digest.FromBytes(b) != d {
		s.Errorf("%s: %s is still damaged, %v", what, d, err)
	}
	if now := s.labelsOf(d); !maps.Equal(now, labels) {
		s.Errorf("%s: its labels are %v, were %v", what, now, labels)
	}
}
