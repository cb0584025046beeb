package imageref

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// DigestError says that a reference by digest is not one of this target.
type DigestError struct{ named, target digest.Digest }

// Error implements error.
func (e *DigestError) Error() string {
	return fmt.Sprintf("it names the digest %s, but the image is %s", e.named, e.target)
}

// SameDigest is an error where a reference by digest names another target: nobody who
// uses it would get what it says.
func SameDigest(named reference.Named, target digest.Digest) error {
	if d, ok := named.(reference.Digested); ok && d.Digest() != target {
		return &DigestError{d.Digest(), target}
	}
	return nil
}

const maxTag = 128 // characters

// WhyInvalid says what is wrong with an image reference.
func WhyInvalid(name string, err error) string {
	var digested *DigestError
	rest := name[strings.LastIndexByte(name, '/')+1:]
	repo, tag, _ := strings.Cut(rest, ":")
	switch {
	case errors.As(err, &digested):
		return err.Error()
	case errors.Is(err, reference.ErrNameContainsUppercase):
		return "the repository has capitals"
	case len(tag) > maxTag && !strings.Contains(tag, "@"):
		return fmt.Sprintf("its tag has %d characters, at most %d", len(tag), maxTag)
	case strings.Contains(name, "://"):
		return "it has a scheme"
	case strings.TrimSpace(name) != name:
		return "it has spaces around it"
	case strings.ToLower(repo) != repo:
		return "the repository has capitals"
	}
	return "the form is NAME[:TAG] or NAME@sha256:DIGEST"
}

// Shortened keeps both ends of a text that is too long to show.
func Shortened(s string) string {
	if r := []rune(s); len(r) > 120 {
		return string(r[:80]) + "…" + string(r[len(r)-30:])
	}
	return s
}
