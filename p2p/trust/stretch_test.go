package trust

import (
	"bytes"
	"strings"
	"testing"
)

const words = "some words that people chose"

// TestStretched: what people chose and tokens cost scrypt, once; what was generated
// does not.
func TestStretched(t *testing.T) {
	t.Parallel()
	made := GenerateSecret()
	var s Stretcher
	parsed, err := s.Parse([]byte(made + "\n" + words + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if string(parsed[0]) != made {
		t.Errorf("a generated secret became %q", parsed[0])
	}
	if len(parsed[1]) != stretchedBytes || bytes.Contains(parsed[1], []byte(words)) {
		t.Errorf("a chosen secret is used as it is: %q", parsed[1])
	}
	token, err := s.SecretOfToken([]byte(words))
	if err != nil || bytes.Equal(token, parsed[1]) {
		t.Errorf("a token and a line of a file with the same text give the same secret: %v", err)
	}
	for key := range s.done { // what is remembered is not derived again
		s.done[key] = Secret("remembered")
	}
	if again, err := s.Parse([]byte(words)); err != nil || string(again[0]) != "remembered" {
		t.Errorf("derived anew: %q %v", again, err)
	}
	for i := range 3 * maxStretched {
		s.done[[32]byte{byte(i)}] = nil
	}
	if _, err := s.stretch([]byte(one), chosenSalt); err != nil || len(s.done) > maxStretched {
		t.Fatalf("%d are remembered, %v", len(s.done), err)
	}
}

// TestMisread: a secret file that another host would read otherwise is refused, with
// the fix.
func TestMisread(t *testing.T) {
	t.Parallel()
	made := GenerateSecret()
	for name, c := range map[string]struct{ file, want string }{
		"a byte order mark": {"\xef\xbb\xbf" + made, "without BOM"},
		"UTF-16":            {"\xff\xfe" + strings.Join(strings.Split(made, ""), "\x00") + "\x00", "UTF-16"},
		"quotes":            {"# mine\n\"" + made + "\"\n", "line 2 has quotes around it, which would be part of it; remove them"},
		"single quotes":     {"'" + made + "'", "remove them"},
	} {
		if _, err := ParseSecrets([]byte(c.file)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
	if s, err := ParseSecrets([]byte("  " + made + "\r\n")); err != nil || string(s[0]) != made {
		t.Errorf("the end of a line as Windows has it: %q %v", s, err)
	}
}

func TestWeak(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"0123456789abcdef", "correct horse battery staple", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "kubernetes-cluster-token", "P4ssw0rd!P4ssw0rd!"} {
		if !Weak([]byte(s)) {
			t.Errorf("%q looks hard to guess", s)
		}
	}
	for range 200 {
		if s := GenerateSecret(); Weak([]byte(s)) {
			t.Errorf("%q looks as if it could be guessed", s)
		}
	}
	for _, s := range []string{"9f86d081884c7d659a2feaa0c55ad015", "uB7q-x2Lr9TzWc4kPm8sYd"} { // k3s makes the first kind
		if Weak([]byte(s)) {
			t.Errorf("%q looks as if it could be guessed", s)
		}
	}
	if got := WeakLines([]byte("# a comment\n" + GenerateSecret() + "\n\nsome words that I chose\n")); len(got) != 1 || got[0] != 4 {
		t.Errorf("weak lines: %v", got)
	}
}
