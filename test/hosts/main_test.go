// Package hosts tests seeder on real hosts that need no packages of seeder's: what
// announcing, fetching, withdrawing and every fault leave in each host's containerd. The
// hosts are those of test/harness.
package hosts

import (
	"testing"

	"seeder/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
