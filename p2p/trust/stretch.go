package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math"
	"slices"
	"sync"

	"golang.org/x/crypto/scrypt"
)

// What people chose, and the password in a k3s token, may be guessed: somebody who
// recorded a packet can try one guess after the other without asking anybody. Each
// guess costs a scrypt (RFC 7914) of 32 MiB, some 0.1 s of a core, where HKDF costs 10
// µs. A secret that GenerateSecret made is 32 random bytes, which nobody guesses, and
// is used as it is: it costs no time and no memory at the start.
const (
	scryptN, scryptR, scryptP = 1 << 15, 8, 1 // 128·N·r bytes = 32 MiB
	stretchedBytes            = 32
	// generatedBytes is what GenerateSecret draws.
	generatedBytes = 32
	// maxStretched bounds what a Stretcher remembers: two full secret files.
	maxStretched = 2 * maxSecrets
	// weakBits is from where on a secret counts as hard to guess also without scrypt.
	weakBits = 80
)

// The salts tell the uses apart. They are the same in every cluster: there is nothing
// that its hosts share but the secret.
const (
	chosenSalt = "seeder secret v1"
	tokenSalt  = "seeder secret of a k3s token v1"
)

// Stretcher reads secrets and remembers what they were stretched to, so that reading
// them again costs nothing. The zero value is ready. It is safe for concurrent use.
type Stretcher struct {
	mu   sync.Mutex
	done map[[sha256.Size]byte]Secret
}

// stretch is scrypt, once for each password and salt.
func (s *Stretcher) stretch(password []byte, salt string) (Secret, error) {
	key := sha256.Sum256(append([]byte(salt+"\x00"), password...))
	s.mu.Lock()
	defer s.mu.Unlock()
	if out, ok := s.done[key]; ok {
		return bytes.Clone(out), nil
	}
	out, err := scrypt.Key(password, []byte(salt), scryptN, scryptR, scryptP, stretchedBytes)
	if err != nil {
		return nil, fmt.Errorf("stretch a secret: %w", err)
	}
	if s.done == nil || len(s.done) >= maxStretched {
		s.done = map[[sha256.Size]byte]Secret{}
	}
	s.done[key] = out
	return bytes.Clone(out), nil
}

// secret is the secret that one line of a file stands for.
func (s *Stretcher) secret(line []byte) (Secret, error) {
	if generated(line) {
		return bytes.Clone(line), nil
	}
	return s.stretch(line, chosenSalt)
}

// SecretOfToken derives a secret from the password of another program's token. That
// is worth more than this cluster: nothing that is derived here says anything of it,
// as long as it cannot be guessed.
func (s *Stretcher) SecretOfToken(password []byte) (Secret, error) {
	if len(password) < MinSecretBytes {
		return nil, fmt.Errorf("the token's password has %d bytes, at least %d are needed", len(password), MinSecretBytes)
	}
	return s.stretch(password, tokenSalt)
}

// generated reports whether line has the form of what GenerateSecret makes.
func generated(line []byte) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(line))
	return err == nil && len(b) == generatedBytes
}

// Weak reports whether a secret looks as if it could be guessed: a coarse look at how
// varied it is. Words are worth half of what their letters would be.
func Weak(secret []byte) bool {
	counts := map[byte]int{}
	letters := 0
	for _, c := range secret {
		counts[c]++
		if 'a' <= c && c <= 'z' || c == ' ' || c == '-' || c == '_' {
			letters++
		}
	}
	n := float64(len(secret))
	var bits float64
	for _, k := range counts {
		bits -= float64(k) * math.Log2(float64(k)/n)
	}
	if float64(letters) > 0.9*n {
		bits /= 2
	}
	return bits < weakBits
}

// WeakLines are the numbers, from 1, of the lines of a secret file whose secret looks
// as if it could be guessed.
func WeakLines(data []byte) (lines []int) {
	for i, line := range bytes.Split(data, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && Weak(line) {
			lines = append(lines, i+1)
		}
	}
	return lines
}

// misread says why a secret file would be read as another secret than the one that
// was meant, empty where it would not.
func misread(data []byte) string {
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		return "it begins with a byte order mark, which an editor put there; save it as UTF-8 without BOM"
	case bytes.IndexByte(data, 0) >= 0:
		return "it has zero bytes: it is UTF-16 or not text; save it as UTF-8 without BOM"
	}
	return ""
}

// quoted reports whether quotes stand around a secret.
func quoted(line []byte) bool {
	return len(line) >= 2 && slices.Contains([]byte(`"'`+"`"), line[0]) && line[0] == line[len(line)-1]
}
