// Package bench measures seeder on real hosts, beside a registry and a loop over hosts. It
// runs where a target of the Makefile asks for it: `make bench`, bench-quick, bench-idle, bench-profile.
package bench

import (
	"testing"

	"seeder/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
