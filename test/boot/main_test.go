// Package boot tests what is installed: packages, unit, release and README, on hosts that
// boot a real systemd. It needs what `make package` makes.
package boot

import (
	"testing"

	"seeder/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
