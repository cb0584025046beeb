package cli

import (
	"strings"

	"github.com/distribution/reference"
)

// NormalizeRef makes what the user typed the reference that CRI uses:
// k3s-dashboard:latest is docker.io/library/k3s-dashboard:latest.
func NormalizeRef(typed string) (string, error) {
	named, err := reference.ParseDockerRef(typed)
	if err != nil {
		if name, dgst, ok := strings.Cut(typed, "@"); ok {
			if _, nameErr := reference.ParseDockerRef(name); nameErr == nil {
				return "", Usagef("invalid digest %q in %q: want sha256: and 64 hexadecimal digits", dgst, typed)
			}
		}
		return "", Usagef("invalid image reference %q: %w; write it as name:tag, e.g. k3s-dashboard:latest or registry.example.com/me/app:v1", typed, err)
	}
	return named.String(), nil
}

// NormalizeRefs is NormalizeRef of each; the first error ends it.
func NormalizeRefs(typed []string) ([]string, error) {
	var out []string
	for _, t := range typed {
		ref, err := NormalizeRef(t)
		if err != nil {
			return nil, err
		}
		out = append(out, ref)
	}
	return out, nil
}

// ShortRef is how a reference is shown: without what every Docker user leaves
// out. It reads back as the same reference.
func ShortRef(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	short := reference.FamiliarString(named)
	if back, err := NormalizeRef(short); err != nil || back != ref {
		return ref
	}
	return short
}

// ShortDigest is enough of a digest to tell two builds apart.
func ShortDigest(dgst string) string {
	_, hex, ok := strings.Cut(dgst, ":")
	if !ok || len(hex) < 12 {
		return dgst
	}
	return hex[:12]
}
