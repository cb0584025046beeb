package web

import (
	"context"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/pods"
	"seeder/p2p/report"
)

// Cluster is what the page asks of the node.
type Cluster interface {
	Images(ctx context.Context, refs ...string) (report.Images, error)
	Members() report.Members
	Status(ctx context.Context) report.Status
	Events() []report.Event
	Traffic() report.Traffic
	Describe(ctx context.Context, ref string) report.ImageDetail
}

// Pods says which pods wait for an image; nil: nobody is asked.
type Pods func(ctx context.Context) pods.Found

// look is the cluster as it was at one moment.
type look struct {
	at      time.Time
	images  report.Images
	members report.Members
	status  report.Status
	events  []report.Event
	traffic report.Traffic
	pods    pods.Found
	err     error // why images is empty
}

const (
	// lookTimeout bounds one look; the node bounds its own asking below that.
	lookTimeout = 10 * time.Second
	// The members are asked at most once in minLook, however many look; asking them
	// never takes more than a tenth of the time, but one that hangs holds up the others
	// no longer than maxLook.
	minLook = time.Second
	maxLook = 5 * time.Second
	// keepLook is for how long a matrix that nobody asks for stays in memory.
	keepLook = 30 * time.Second
)

// looks shares one look at the cluster among all who ask at about the same time.
// While nobody asks, no member is asked.
type looks struct {
	cluster Cluster
	pods    Pods
	ctx     context.Context
	cancel  context.CancelFunc
	group   sync.WaitGroup

	mu     sync.Mutex
	last   *look         // nil: none, or none any more
	until  time.Time     // last is new enough until then
	taking chan struct{} // closed when the look that is being taken is there; nil: none is
	forget *time.Timer
}

func newLooks(c Cluster, p Pods) *looks {
	ctx, cancel := context.WithCancel(context.Background())
	return &looks{cluster: c, pods: p, ctx: ctx, cancel: cancel}
}

// close ends the look that is being taken; nobody may ask any more.
func (s *looks) close() {
	s.cancel()
	s.mu.Lock()
	if s.forget != nil {
		s.forget.Stop()
	}
	s.mu.Unlock()
	s.group.Wait()
}

// get returns the last look if it is new enough, else the next one.
func (s *looks) get(ctx context.Context) (*look, error) {
	for {
		s.mu.Lock()
		if err := s.ctx.Err(); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		if s.last != nil && time.Now().Before(s.until) {
			l := s.last
			s.mu.Unlock()
			return l, nil
		}
		if s.taking == nil {
			s.taking = make(chan struct{})
			s.group.Go(s.take)
		}
		taken := s.taking
		s.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
}

// take asks everybody, also where the one who wanted to know has gone since.
func (s *looks) take() {
	ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
	defer cancel()
	start := time.Now()
	l := &look{}
	var beside sync.WaitGroup
	if s.pods != nil {
		beside.Go(func() { l.pods = s.pods(ctx) })
	}
	l.images, l.err = s.cluster.Images(ctx)
	beside.Wait()
	l.members, l.status, l.events, l.traffic = s.cluster.Members(), s.cluster.Status(ctx), s.cluster.Events(), s.cluster.Traffic()
	l.at = time.Now()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.until = l, l.at.Add(min(max(10*l.at.Sub(start), minLook), maxLook))
	close(s.taking)
	s.taking = nil
	if s.ctx.Err() != nil {
		return
	}
	if s.forget == nil {
		s.forget = time.AfterFunc(keepLook, s.drop)
	}
	s.forget.Reset(keepLook)
}

func (s *looks) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.last.at) >= keepLook {
		s.last = nil
	}
}
