package p2p

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"seeder/internal/text"
	"seeder/p2p/report"
)

// host is what this node says of its host.
func (n *Node) host() report.Host {
	disk, c := diskOf(n.cfg.DataDir), n.health.status()
	h := report.Host{FreeBytes: disk.free, DiskBytes: disk.all}
	if h.Containerd = c.Version; !c.OK {
		h.Containerd, h.ContainerdAway = "", c.Reason
	}
	return h
}

// boundedHost is what another node says of its host, as it may be kept.
func boundedHost(h report.Host) report.Host {
	return report.Host{
		Containerd: text.Clean(h.Containerd, maxReasonBytes), ContainerdAway: text.Clean(h.ContainerdAway, maxReasonBytes),
		FreeBytes: min(max(h.FreeBytes, 0), max(h.DiskBytes, 0)), DiskBytes: max(h.DiskBytes, 0),
	}
}

// disk is the file system of a directory, in bytes.
type disk struct{ free, all int64 }

// diskOf is zero where it cannot be told. What is free is what is left for this process.
func diskOf(dir string) disk {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return disk{}
	}
	return disk{int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize}
}

// facts are what a member said of itself beside its images.
type facts struct {
	labels map[string]string
	host   *report.Host
}

// memberFacts are what members said when they were asked last, of as many as gossip keeps.
type memberFacts struct {
	mu     sync.Mutex
	byName map[string]facts
}

// maxMemberFacts bounds the members whose facts are remembered.
const maxMemberFacts = 4096

func (m *memberFacts) note(name string, f facts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byName == nil || len(m.byName) >= maxMemberFacts {
		m.byName = map[string]facts{}
	}
	m.byName[name] = f
}

func (m *memberFacts) of(name string) facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byName[name]
}

// membersWait is how long AskMembers waits for members that are slow: the list itself is
// known.
const membersWait = 500 * time.Millisecond

// AskMembers lists the cluster with what the members say of themselves now. It takes no
// longer than half a second: of a member that is slower it has what that one said before.
func (n *Node) AskMembers(ctx context.Context) report.Members {
	ctx, cancel := context.WithTimeout(ctx, membersWait)
	defer cancel()
	silent := map[string]error{}
	for _, a := range n.ask(ctx, []string{noImage}) { // no image: the labels are enough
		if a.err != nil && !a.away && !errors.Is(a.err, context.DeadlineExceeded) {
			silent[a.name] = a.err
		}
	}
	out := n.Members()
	for i, m := range out.Members {
		if err := silent[m.Name]; err != nil && m.Reason == "" {
			out.Members[i].Reason = err.Error()
		}
	}
	return out
}
