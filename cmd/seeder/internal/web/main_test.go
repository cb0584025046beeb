package web

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets a browser have a page to look at: this test binary as `seeder-page`.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"seeder-page": seederPage})
}
