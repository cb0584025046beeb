// Package attack attacks a daemon from a host of its network, without the cluster's secret
// and with it, and holds what that costs it to docs/security.md. A group of attacks is one
// file.
package attack

import (
	"testing"

	"seeder/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
