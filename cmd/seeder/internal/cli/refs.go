package cli

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
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

// Typed is an image as the user typed it.
type Typed struct {
	Text string
	Ref  string        // normalised; "" where there is none
	At   digest.Digest // "" where there is none
}

// ParseTyped reads NAME[:TAG][@DIGEST]. A digest behind a tag stays apart from it:
// the tag will stand for it.
func ParseTyped(text string) (Typed, error) {
	t := Typed{Text: text}
	named, err := reference.ParseNormalizedNamed(text)
	if err == nil {
		if digested, ok := named.(reference.Digested); ok {
			t.At = digested.Digest()
			if tagged, ok := named.(reference.Tagged); ok {
				text = reference.TrimNamed(named).Name() + ":" + tagged.Tag()
			}
		}
	}
	t.Ref, err = NormalizeRef(text)
	return t, err
}
