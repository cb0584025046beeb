// Package docs holds the documentation, for the tests that hold it to the code.
//
// A test vector in a page is a fenced block whose info string is "vector" and a
// name. Each of its lines is a key, white space and a value; lines that begin with
// white space go on with the value before, without anything in between.
package docs

import (
	_ "embed" // for the pages
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

//go:embed protocol.md
var protocol string

// Vector is a test vector of protocol.md: values by key.
type Vector struct {
	t      testing.TB
	name   string
	values map[string]string
}

// Protocol reads the test vector of that name in protocol.md; the test fails where
// there is none.
func Protocol(t testing.TB, name string) Vector {
	t.Helper()
	values, err := vector(protocol, name)
	if err != nil {
		t.Fatalf("docs/protocol.md: %v", err)
	}
	return Vector{t: t, name: name, values: values}
}

// vector reads the one block of that name.
func vector(page, name string) (map[string]string, error) {
	var values map[string]string
	var key string
	in := false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case !in && line == "```vector "+name:
			if values != nil {
				return nil, fmt.Errorf("two vectors %s", name)
			}
			in, values = true, map[string]string{}
		case !in:
		case line == "```":
			in = false
		case strings.HasPrefix(line, " ") && key != "":
			values[key] += strings.TrimSpace(line)
		default:
			var value string
			key, value, _ = strings.Cut(line, " ")
			if _, twice := values[key]; twice || key == "" {
				return nil, fmt.Errorf("vector %s: %q is empty or there twice", name, key)
			}
			values[key] = strings.TrimSpace(value)
		}
	}
	if values == nil || in {
		return nil, fmt.Errorf("no vector %s, or it does not end", name)
	}
	return values, nil
}

// Text is the value of a key.
func (v Vector) Text(key string) string {
	v.t.Helper()
	s, ok := v.values[key]
	if !ok {
		v.t.Fatalf("docs/protocol.md: vector %s has no %s", v.name, key)
	}
	return s
}

// Hex are the bytes that the value of a key stands for.
func (v Vector) Hex(key string) []byte {
	v.t.Helper()
	b, err := hex.DecodeString(v.Text(key))
	if err != nil {
		v.t.Fatalf("docs/protocol.md: vector %s: %s: %v", v.name, key, err)
	}
	return b
}

// Keys are the keys, in no order.
func (v Vector) Keys() []string {
	var out []string
	for k := range v.values {
		out = append(out, k)
	}
	return out
}

// Is fails the test where the code says something else than the page.
func (v Vector) Is(key, got string) {
	v.t.Helper()
	if want := v.Text(key); got != want {
		v.t.Errorf("docs/protocol.md: vector %s: %s is\n%s\nand the code says\n%s", v.name, key, want, got)
	}
}

// IsHex is Is for bytes.
func (v Vector) IsHex(key string, got []byte) {
	v.t.Helper()
	v.Is(key, hex.EncodeToString(got))
}
