package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"seeder/p2p"
	"seeder/p2p/p2ptest"
	"seeder/p2p/report"
	"seeder/store/chunk"
)

// happened is the newest event of a kind, nil where there is none.
func happened(nd *testNode, kind report.EventKind, ref string) *report.Event {
	list := nd.Events()
	i := slices.IndexFunc(list, func(e report.Event) bool { return e.Kind == kind && e.Reference == ref })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// TestEventsTellWhatHappened: members that come, leave and are lost, what is announced
// and withdrawn, what became ready, failed or was removed, and containerd that goes
// and comes.
func TestEventsTellWhatHappened(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	first, last := nodes[0], nodes[2]
	saw := func(nd *testNode, kind report.EventKind, ref, node string) {
		t.Helper()
		nd.waitFor(t, string(kind)+" "+ref+" "+node, func() bool {
			return slices.ContainsFunc(nd.Events(), func(e report.Event) bool {
				return e.Kind == kind && e.Reference == ref && (node == "" || slices.Contains(e.Nodes, node))
			})
		})
	}
	saw(first, report.EventUp, "", "")
	saw(first, report.EventJoined, "", "n2")
	a := first.store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, first, a)
	saw(first, report.EventAnnounced, testRef, "n0")
	saw(last, report.EventAnnounced, testRef, "n0")
	saw(last, report.EventReady, testRef, "")
	if e := happened(last, report.EventReady, testRef); e.Version != 1 || e.Reason == "" || e.Time.IsZero() || e.Count != 1 {
		t.Errorf("%+v", e)
	}
	if e := happened(first, report.EventReady, testRef); e != nil {
		t.Errorf("the announcer had it, and says %+v", e)
	}
	// Until its job has ended, what is removed was never ready: it is done again.
	var forgot time.Time
	last.waitFor(t, "removed", func() bool {
		if time.Since(forgot) > time.Second {
			forgot = time.Now()
			last.store.Forget(testRef)
		}
		return happened(last, report.EventRemoved, testRef) != nil
	})

	last.waitFor(t, "ready again", func() bool {
		have, _ := last.store.List(t.Context())
		return have[testRef] == a.Target.Digest
	})

	last.store.SetDown(errors.New("no such socket"))
	saw(last, report.EventDown, "", "")
	last.store.SetDown(nil)
	last.waitFor(t, "containerd twice", func() bool { e := happened(last, report.EventUp, ""); return e != nil && e.Count == 2 })

	if err := first.Withdraw(t.Context(), testRef, report.Withdrawal{}); err != nil {
		t.Fatal(err)
	}
	saw(first, report.EventWithdrawn, testRef, "n0")
	saw(last, report.EventWithdrawn, testRef, "n0")
	last.close(t)
	saw(first, report.EventLeft, "", "n2")
	last.open(t)
	saw(last, report.EventJoined, "", "n0")
}

// brokenStore is a store with something wrong about its images.
type brokenStore struct {
	*p2ptest.Store
	open func(p2p.Image) (p2p.Image, error)
}

func (s brokenStore) Image(ctx context.Context, index []byte) (p2p.Image, error) {
	img, err := s.Store.Image(ctx, index)
	if err != nil {
		return nil, err
	}
	return s.open(img)
}

// lyingImage hands out chunks with one bit turned.
type lyingImage struct{ p2p.Image }

func (i lyingImage) Frame(ctx context.Context, n int) (chunk.Frame, error) {
	f, err := i.Image.Frame(ctx, n)
	if err != nil {
		return f, err
	}
	defer f.Payload.Close()
	b, err := io.ReadAll(f.Payload)
	if err == nil {
		b[0] ^= 1
	}
	f.Payload = io.NopCloser(bytes.NewReader(b))
	return f, err
}

// TestEventsTellWhatWentWrong: who sent a chunk that does not verify, why an image
// cannot be had, and what it waits for.
func TestEventsTellWhatWentWrong(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	liar, full, broken := nodes[0], nodes[1], nodes[2]
	reopen := func(nd *testNode, open func(p2p.Image) (p2p.Image, error)) {
		nd.close(t)
		nd.Node = p2p.New(nd.cfg, brokenStore{nd.store, open})
		if err := nd.Node.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nd.Node.Close() })
		nd.waitFor(t, "3 alive members", func() bool { return alive(nd) == 3 })
	}
	reopen(broken, func(p2p.Image) (p2p.Image, error) { return nil, errors.New("no space \x1b[2J left") })
	full.store.SetRoom("2 GiB are missing")
	a := liar.store.Add(testRef, blob(1, 1<<20), 256<<10)
	announce(t, liar, a)
	full.waitFor(t, "waiting", func() bool {
		e := happened(full, report.EventWaiting, testRef)
		return e != nil && e.Reason == "2 GiB are missing"
	})
	broken.waitFor(t, "failed twice", func() bool {
		e := happened(broken, report.EventFailed, testRef)
		return e != nil && e.Count > 1 && e.Reason == "open "+testRef+": no space ?[2J left"
	})
	reopen(liar, func(img p2p.Image) (p2p.Image, error) { return lyingImage{img}, nil })
	full.store.SetRoom("")
	full.waitFor(t, "bad chunk", func() bool {
		e := happened(full, report.EventBadChunk, testRef)
		return e != nil && e.Nodes[0] == "n0"
	})
}

// TestClusterTellsWhoIsLost: members that end without a word are one event, and so are
// those that come together.
func TestClusterTellsWhoIsLost(t *testing.T) {
	simulate(t, []int{5}, func(c *simCluster) {
		c.start(c.nodes...)
		c.within(2*time.Second, "all see all", c.allAlive)
		first, lost := c.nodes[0], c.nodes[3:]
		c.kill(lost...)
		c.within(time.Minute, "they are lost", func() error {
			e := happened(&testNode{Node: first.Node}, report.EventLost, "")
			if e == nil || e.Count != len(lost) || !slices.Contains(e.Nodes, lost[0].cfg.Name) || !slices.Contains(e.Nodes, lost[1].cfg.Name) {
				return fmt.Errorf("%+v", first.Events())
			}
			return nil
		})
		if e := happened(&testNode{Node: first.Node}, report.EventJoined, ""); e == nil || e.Count != 4 {
			c.t.Errorf("%+v, want 4 that joined", first.Events())
		}
	})
}
