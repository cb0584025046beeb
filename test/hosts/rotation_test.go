package hosts

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"seeder/p2p/trust"
	"seeder/test/harness"
)

// TestRotation: a cluster of five moves from one secret to the next by the written
// procedure (docs/security.md) while images go around all the time. No
// announcement fails, nobody complains, and a host with only the old secret is out.
func TestRotation(t *testing.T) {
	harness.NeedRoot(t)
	t.Parallel() // it waits most of the time
	next := trust.GenerateSecret()
	n := harness.NewCluster(t, harness.Newest, 5, "100mbit")
	master := n.Hosts[0]

	// Each step ends when everybody has done it and images have gone around since.
	rounds := make(chan int)
	rotated := make(chan error, 1)
	go func() { // ends when it has sent to rotated, which this test receives
		rotated <- func() error {
			for i, secrets := range []string{harness.Secret + "\n" + next, next + "\n" + harness.Secret, next} {
				for _, h := range n.Hosts {
					if err := os.WriteFile(h.Path("/etc/seeder/secret"), []byte("# step\n"+secrets+"\n"), 0o600); err != nil {
						return err
					}
					if err := h.Try(nil, "reload"); err != nil {
						return fmt.Errorf("step %d: %w", i+1, err)
					}
					<-rounds // the hosts differ for a while
				}
			}
			for _, h := range n.Hosts {
				for deadline := time.Now().Add(time.Minute); !strings.Contains(h.Seeder.Log.String(), "closed connections of a removed secret"); <-rounds {
					if time.Now().After(deadline) {
						return errors.New(h.Name + " has not closed its old connections")
					}
				}
			}
			<-rounds
			return nil
		}()
	}()
	var says string
	for round, done := 1, false; !done; round++ {
		says = fmt.Sprintf("build %d", round)
		master.ImportImage(harness.ImageSpec{Ref: harness.ShortName, Says: says, Random: 8 << 20, Seed: uint64(round)})
		master.Run("announce", harness.ShortName)
		select {
		case err := <-rotated:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d builds of 8 MiB went to five hosts meanwhile", round)
			done = true
		case rounds <- round:
		case <-time.After(time.Millisecond):
		}
	}
	for _, h := range n.Hosts {
		h.Ready(says)
		for line := range strings.Lines(h.Seeder.Log.String()) {
			if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
				t.Errorf("%s complained: %s", h.Name, line)
			}
		}
		if bad := h.Metric("seeder_chunk_verification_failures_total"); bad != 0 {
			t.Errorf("%s had %.0f chunks that did not verify", h.Name, bad)
		}
	}

	late := n.AddHost(harness.Newest)
	late.StartContainerd()
	late.StartSeeder() // with the old secret
	harness.Eventually(t, 30*time.Second, "the host with the old secret is told why it is alone", func() error {
		if log := late.Seeder.Log.String(); !strings.Contains(log, "secrets differ") {
			return errors.New(late.Seeder.Log.Tail(3))
		}
		return nil
	})
	master.AwaitMembers(5)
	late.Write("/etc/seeder/secret", next+"\n", 0o600)
	late.Run("reload")
	master.AwaitMembers(6)
	late.Ready(says)
}
