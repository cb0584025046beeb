// Package controltest is a node for tests of what talks to the control API.
package controltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/p2p/catalog"
	"seeder/p2p/report"
)

// Node is a cluster whose matrix advances by one step each time it is asked.
type Node struct {
	Mu        sync.Mutex
	Steps     []report.Images // the last one stays
	Err       error
	Withdrawn []string
	forgotten []string
	Imported  []byte
	Archive   []string // references that ImportArchive finds

	ExportOrder control.ExportOrder // the last one
	Exported    control.Exported
	WriteExport func(io.Writer) error

	Unnamed   []string // what it says of others
	Announced control.Announced
	Refused   map[string]error // by the reference that Announce refuses
	Orders    []control.Order
}

// Images is part of what a control.Server asks of a node.
func (f *Node) Images(context.Context, ...string) (report.Images, error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.Err != nil {
		return report.Images{}, f.Err
	}
	now := f.Steps[0]
	if len(f.Steps) > 1 {
		f.Steps = f.Steps[1:]
	}
	return now, nil
}

// Watch is part of what a control.Server asks of a node.
func (f *Node) Watch(ctx context.Context, _ func(), _ ...string) { <-ctx.Done() }

// Reload is part of what a control.Server asks of a node.
func (f *Node) Reload() (control.Reloaded, error) { return control.Reloaded{}, f.Err }

// Members is part of what a control.Server asks of a node.
func (f *Node) Members() report.Members {
	return report.Members{Members: []report.MemberState{{Name: "n1", Address: "10.0.0.1:7951", State: "alive", Version: "1"}, {Name: "n2\x1b[2J", State: "dead", Reason: "speaks \x1b[2J protocol 2"}}}
}

// Status is part of what a control.Server asks of a node.
func (f *Node) Status(context.Context) report.Status {
	return report.Status{Node: "n1", Members: 3, Images: report.ImageCount{Ready: 1, Total: 3},
		Containerd: report.ContainerdStatus{Address: "/c.sock", Reason: "no such\nsocket"}, Join: report.JoinStatus{Refused: true, Reason: "the secrets differ"},
		Transfers: []report.Transfer{{Reference: "docker.io/library/app:v1", State: report.Fetching, DoneBytes: 1 << 20, TotalBytes: 4 << 20, Peers: []string{"n2", "n3"},
			RateBytesPerSecond: 1 << 20, Sources: []report.Source{{Name: "n2", Bytes: 900 << 10}, {Name: "n3", Bytes: 124 << 10}}}}}
}

// AskMembers is part of what a control.Server asks of a node.
func (f *Node) AskMembers(context.Context) report.Members { return f.Members() }

// Forget is part of what a control.Server asks of a node.
func (f *Node) Forget(name string) error {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.forgotten = append(f.forgotten, name)
	return f.Err
}

// CheckOn is part of what a control.Server asks of a node.
func (f *Node) CheckOn(_ context.Context, on []string) error {
	if slices.Contains(on, "zone=nowhere") {
		return &report.NoNodeError{On: on, Labels: []string{"zone=a"}}
	}
	for _, s := range on {
		if err := catalog.CheckSelector(s); err != nil {
			return err
		}
	}
	return nil
}

// Local is part of what a control.Server asks of a node.
func (f *Node) Local(_ context.Context, ref string) (control.Local, error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.Err != nil {
		return control.Local{}, f.Err
	}
	return control.Local{Digest: "sha256:" + digest.Digest(strings.Repeat("ab", 32))}, nil
}

// References is part of what a control.Server asks of a node.
func (f *Node) References(context.Context) control.References {
	return control.References{Announced: []string{"docker.io/library/app:v1", "registry.example.com/me/app:v2"}, Local: []string{"docker.io/library/local:v1"}}
}

// Withdraw is part of what a control.Server asks of a node.
func (f *Node) Withdraw(_ context.Context, ref string, w report.Withdrawal) error {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if f.Err != nil {
		return f.Err
	}
	f.Withdrawn = append(f.Withdrawn, fmt.Sprint(ref, " ", w.Purge, w.Force))
	return nil
}

// ImportArchive is part of what a control.Server asks of a node.
func (f *Node) ImportArchive(_ context.Context, r io.Reader, _ string) (control.Imported, error) {
	data, err := io.ReadAll(io.LimitReader(r, 1000)) // what follows is for nobody
	if err != nil {
		return control.Imported{}, err
	}
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.Imported = data
	return control.Imported{Names: f.Archive, LeftOut: f.Unnamed}, f.Err
}

// Export is part of what a control.Server asks of a node.
func (f *Node) Export(_ context.Context, o control.ExportOrder, begin func(control.Exported, func(io.Writer) error) error) error {
	f.Mu.Lock()
	f.ExportOrder = o
	sum, write, err := f.Exported, f.WriteExport, f.Err
	f.Mu.Unlock()
	if err != nil {
		return err
	}
	return begin(sum, write)
}

// Announce is part of what a control.Server asks of a node.
func (f *Node) Announce(_ context.Context, o control.Order) (control.Announced, error) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.Orders = append(f.Orders, o)
	a := f.Announced
	a.Reference = o.Ref
	return a, errors.Join(f.Err, f.Refused[o.Ref])
}

// Row is the matrix row of app:v1 at a version with these nodes.
func Row(version uint64, states ...report.State) report.Images {
	img := report.ImageState{Reference: "docker.io/library/app:v1", Digest: "sha256:" + strings.Repeat("ab", 32),
		Version: version, Size: 4 << 20, State: "announced", AnnouncedBy: "n1", Nodes: []report.NodeState{}}
	for i, s := range states {
		n := report.NodeState{Name: fmt.Sprintf("n%d", i+1), State: s, TotalBytes: 4 << 20, DoneBytes: 1 << 20, Reason: "because"}
		img.Nodes = append(img.Nodes, n)
		if s != report.Excluded {
			img.Total++
		}
		if s == report.Ready {
			img.Ready++
		}
	}
	return report.Images{Images: []report.ImageState{img}}
}

// Serve runs a control API over f and returns its socket.
func Serve(t *testing.T, f *Node) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api.sock")
	c := control.NewServer(socket, f, f, f, slog.New(slog.NewTextHandler(t.Output(), nil)))
	c.Exports = f
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return socket
}

// Pending is part of what a control.Server asks of a node.
func (f *Node) Pending() control.Pending {
	return control.Pending{Config: config.Config{DataDir: "/"}}
}

// Diagnose is part of what a control.Server asks of a node.
func (f *Node) Diagnose(context.Context) report.Diagnosis {
	return report.Diagnosis{Node: "n1", Members: []report.MemberReport{}}
}

// Holders is part of what a control.Server asks of a node.
func (f *Node) Holders(_ context.Context, refs []string) map[string][]string {
	return map[string][]string{refs[0]: {"n2"}}
}

// Events is part of cluster.
func (f *Node) Events() []report.Event { return nil }

// Traffic is part of what the status page asks of a node.
func (f *Node) Traffic() report.Traffic { return report.Traffic{} }

// Describe is part of what the status page asks of a node.
func (f *Node) Describe(context.Context, string) report.ImageDetail { return report.ImageDetail{} }
