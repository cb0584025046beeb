package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"seeder/internal/text"
	"seeder/p2p/gossip"
	"seeder/p2p/members"
	"seeder/p2p/report"
)

// asking gathers the columns of all members for one question.
type asking struct {
	m     *Matrix
	refs  []string
	asked func(ref string) bool
	limit int64        // bytes of one answer
	total atomic.Int64 // bytes that may still come, of all

	mu      sync.Mutex
	answers []answer
}

// ask gathers the columns of all members, this node's own included, by name. Members
// with one address are asked once: others would multiply what one host may answer.
func (m *Matrix) ask(ctx context.Context, refs []string) []answer {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	a := m.newAsking(refs)
	byAddress := map[string][]string{}
	var order []string
	for _, member := range m.cfg.Members.All() { // the time is for those that are there
		switch {
		case member.Name == m.cfg.Members.Self():
			a.gather(answerOf(m.column(refs)))
		case member.State == gossip.StateLeft:
		case member.State == gossip.StateDead:
			a.gather(answer{name: member.Name, away: true, since: member.Since, labels: m.cfg.Members.Facts(member.Name).Labels, err: errors.New("no answer to gossip")})
		case member.Reason != "":
			a.gather(answer{name: member.Name, err: errors.New(members.Reason(member))})
		default:
			if byAddress[member.Address] == nil {
				order = append(order, member.Address)
			}
			byAddress[member.Address] = append(byAddress[member.Address], member.Name)
		}
	}
	var wg sync.WaitGroup
	sem := semaphore.NewWeighted(maxAsks)
	for _, addr := range order {
		if err := sem.Acquire(ctx, 1); err != nil {
			for _, name := range byAddress[addr] {
				a.gather(answer{name: name, err: fmt.Errorf("not asked in time: %w", err)})
			}
			continue
		}
		wg.Go(func() {
			defer sem.Release(1)
			a.askAt(ctx, addr, byAddress[addr])
		})
	}
	wg.Wait()
	slices.SortFunc(a.answers, func(x, y answer) int { return strings.Compare(x.name, y.name) })
	return a.answers
}

// newAsking is a question for refs that nobody has been asked yet.
func (m *Matrix) newAsking(refs []string) *asking {
	known := map[string]bool{}
	for _, rec := range m.selected(refs) {
		known[rec.Announcement().Reference] = true
	}
	a := &asking{m: m, refs: refs, asked: func(ref string) bool { return known[ref] }, limit: maxReportBytes + imageBytes*int64(len(known))}
	a.total.Store(maxAnswersBytes)
	return a
}

func (a *asking) gather(ans answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(a.answers, ans)
}

// askAt asks at one address for the members that are said to be there: the answer is
// that of the one whose name it gives. A member that asker no longer waits for, before
// askTimeout is over, is not silent.
func (a *asking) askAt(asker context.Context, addr string, names []string) {
	ctx, cancel := context.WithTimeout(asker, askTimeout)
	defer cancel()
	began := time.Now()
	var ans answer
	err := a.m.cfg.Client.State(ctx, addr, a.refs, nil, a.limit, func(r io.Reader) (err error) {
		ans, err = decodeReport(r, names[0], a.asked, &a.total)
		if err != nil {
			err = fmt.Errorf("unreadable answer from %s: %w", addr, err)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("is alive, but does not answer on %s: %w", addr, err)
	}
	if err == nil || asker.Err() == nil {
		a.m.silences.note(addr, began, err)
	}
	for _, name := range names {
		switch {
		case err != nil:
			a.gather(answer{name: name, err: err})
		case len(names) > 1 && name != ans.says:
			a.gather(answer{name: name, err: fmt.Errorf("%s answers on its address %s; give each host its own address and node name", text.Clean(ans.says, report.MaxTextBytes), addr)})
		default:
			ans.name = name
			a.m.cfg.Members.SetFacts(name, members.Facts{Labels: ans.labels, Host: ans.host})
			a.gather(ans)
		}
	}
}
