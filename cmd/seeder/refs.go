package main

import (
	"strings"

	"github.com/distribution/reference"
)

// normalizeRef makes what the user typed the reference that CRI uses:
// k3s-dashboard:latest is docker.io/library/k3s-dashboard:latest.
func normalizeRef(typed string) (string, error) {
	named, err := reference.ParseDockerRef(typed)
	if err != nil {
		return "", usagef("%q is not an image reference: %w; write it as name:tag, as k3s-dashboard:latest or registry.example.com/me/app:v1", typed, err)
	}
	return named.String(), nil
}

// parseTyped reads NAME[:TAG][@DIGEST]. A digest behind a tag stays apart from it:
// the tag shall stand for it.
func parseTyped(text string) (typed, error) {
	t := typed{text: text}
	named, err := reference.ParseNormalizedNamed(text)
	if err == nil {
		if digested, ok := named.(reference.Digested); ok {
			t.at = digested.Digest()
			if tagged, ok := named.(reference.Tagged); ok {
				text = reference.TrimNamed(named).Name() + ":" + tagged.Tag()
			}
		}
	}
	t.ref, err = normalizeRef(text)
	return t, err
}

func normalizeRefs(typed []string) ([]string, error) {
	var out []string
	for _, t := range typed {
		ref, err := normalizeRef(t)
		if err != nil {
			return nil, err
		}
		out = append(out, ref)
	}
	return out, nil
}

// shortRef is how a reference is shown: without what every Docker user leaves
// out. It reads back as the same reference.
func shortRef(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	short := reference.FamiliarString(named)
	if back, err := normalizeRef(short); err != nil || back != ref {
		return ref
	}
	return short
}

// shortDigest is enough of a digest to tell two builds apart.
func shortDigest(dgst string) string {
	_, hex, ok := strings.Cut(dgst, ":")
	if !ok || len(hex) < 12 {
		return dgst
	}
	return hex[:12]
}
