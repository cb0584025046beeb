package term

import (
	"testing"

	"github.com/mattn/go-runewidth"
)

// TestMiddle: what tells one reference from the next stays.
func TestMiddle(t *testing.T) {
	t.Parallel()
	const long = "registry.example.com/team/payments-api:2026.11.29-abcdef0"
	for width, want := range map[int]string{
		80: long, 57: long, 46: "registry.exampl…/payments-api:2026.11.29-abcdef0", 44: "registry.exam…/payments-api:2026.11.29-abcdef0",
	} {
		got := Middle(long, width)
		if runewidth.StringWidth(got) > max(width, 0) || width >= 57 && got != want {
			t.Errorf("%d columns: %q of %d", width, got, runewidth.StringWidth(got))
		}
	}
	if got, want := Middle(long, 44), "registry.ex…/payments-api:2026.11.29-abcdef0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for width := 3; width < 60; width++ {
		if got := Middle("한국어한국어한국어한국어/앱앱앱앱앱앱앱앱:v1", width); runewidth.StringWidth(got) > width {
			t.Errorf("%q has %d columns, want %d", got, runewidth.StringWidth(got), width)
		}
	}
}
