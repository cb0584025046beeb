// Package imageref is image references as the kubelet, containerd and people write them.
//
// It owns how one is normalised the way CRI does, which names CRI keeps for a digest, and
// what is wrong with an invalid one. It never asks anybody. Invariant: two ways to write
// one reference have one normal form.
package imageref

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Normalize writes a reference as CRI does: k3s-dashboard becomes
// docker.io/library/k3s-dashboard:latest. A tag beside a digest is dropped.
func Normalize(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("invalid image reference %q: %w; the form is NAME[:TAG] or NAME@sha256:DIGEST, in lower case, e.g. k3s-dashboard:latest", ref, err)
	}
	return named.String(), nil
}

// ByDigest is the name under which CRI keeps the digest of a reference:
// repository@sha256:….
func ByDigest(ref string, target digest.Digest) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", err
	}
	return reference.TrimNamed(named).Name() + "@" + target.String(), nil
}

// Repository is the part of a reference before its tag or digest, and whether it
// is a tag; the reference itself where it is neither.
func Repository(ref string) (repo string, tag bool) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ref, true
	}
	_, isDigest := named.(reference.Digested)
	return named.Name(), !isDigest
}

// ForCRI is the reference for which CRI looks where containerd has an image under
// name, "" where there is none: for an image id, or what is not a reference.
func ForCRI(name string) string {
	if strings.HasPrefix(name, string(digest.SHA256)+":") {
		return ""
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return named.String()
}

// CheckDigest is an error where ref names a digest that is not the target's: whoever
// uses such a reference would get what it does not say.
func CheckDigest(ref string, target digest.Digest) error {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return err
	}
	if err := SameDigest(named, target); err != nil {
		return fmt.Errorf("%s: %w; announce it under a name with a tag: ctr -n k8s.io images tag %s NAME:TAG", ref, err, ref)
	}
	return nil
}
