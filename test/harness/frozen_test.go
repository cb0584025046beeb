package harness

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestFrozenEnds: a network with a frozen daemon ends, as where a test fails in the meantime.
func TestFrozenEnds(t *testing.T) {
	t.Parallel()
	n := NewNetwork(t, "")
	h := n.AddHost(Newest)
	h.Seeder = h.Start(nil, "sleep", "1000")
	h.Seeder.Freeze()
	Eventually(t, 5*time.Second, "nsenter is stopped, too", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.Seeder.Cmd.Process.Pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = fmt.Errorf("%s", stat)
		}
		return err
	})
}
