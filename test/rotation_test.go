package test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"seeder/p2p/trust"
)

// TestRotation: a cluster of five moves from one secret to the next by the written
// procedure (docs/security.md) while images go around all the time. No
// announcement fails, nobody complains, and whoever has only the old secret is out.
func TestRotation(t *testing.T) {
	needRoot(t)
	t.Parallel() // it waits most of the time
	next := trust.GenerateSecret()
	n := cluster(t, newest, 5, "100mbit")
	master := n.hosts[0]

	// Each step ends when everybody has done it and images have gone around since.
	rounds := make(chan int)
	rotated := make(chan error, 1)
	go func() { // ends when it has sent to rotated, which this test receives
		rotated <- func() error {
			for i, secrets := range []string{secret + "\n" + next, next + "\n" + secret, next} {
				for _, h := range n.hosts {
					if err := os.WriteFile(h.path("/etc/seeder/secret"), []byte("# step\n"+secrets+"\n"), 0o600); err != nil {
						return err
					}
					if err := h.try(nil, "reload"); err != nil {
						return fmt.Errorf("step %d: %w", i+1, err)
					}
					<-rounds // the hosts differ for a while
				}
			}
			for _, h := range n.hosts {
				for deadline := time.Now().Add(time.Minute); !strings.Contains(h.seeder.log.String(), "closed connections of a removed secret"); <-rounds {
					if time.Now().After(deadline) {
						return errors.New(h.name + " has not closed its old connections")
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
		master.importImage(imageSpec{ref: short, says: says, random: 8 << 20, seed: uint64(round)})
		master.run("announce", short)
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
	for _, h := range n.hosts {
		h.ready(says)
		for line := range strings.Lines(h.seeder.log.String()) {
			if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
				t.Errorf("%s complained: %s", h.name, line)
			}
		}
		if bad := h.metric("seeder_chunk_verification_failures_total"); bad != 0 {
			t.Errorf("%s had %.0f chunks that did not verify", h.name, bad)
		}
	}

	late := n.addHost(newest)
	late.startContainerd()
	late.startSeeder() // with the old secret
	eventually(t, 30*time.Second, "the host with the old secret is told why it is alone", func() error {
		if log := late.seeder.log.String(); !strings.Contains(log, "secrets differ") {
			return errors.New(late.seeder.log.tail(3))
		}
		return nil
	})
	master.awaitMembers(5)
	late.write("/etc/seeder/secret", next+"\n", 0o600)
	late.run("reload")
	master.awaitMembers(6)
	late.ready(says)
}
