package k3s

import (
	"context"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/config"
	"seeder/store/ctrd"
)

// NoteFound notes what this host has below root for keys that nobody has set.
func NoteFound(ctx context.Context, l *config.Loaded, root string) {
	if l.SecretFile == "" {
		source := ""
		switch f, err := LoadSecrets(l.Config, root); {
		case err != nil:
			first, _, more := strings.Cut(err.Error(), "\n")
			if source = "none that can be used: " + first; more {
				source += "; seeder config check says more"
			}
		case f.Alone:
			source = "none; this node stays alone"
		default:
			source = f.Source
		}
		l.Note("secret_file", "", "default ("+source+")")
	}
	if hosts, from := Joins(l.Config, root); from != "" {
		l.Note("gossip.join", hosts, "default (the servers in "+from+")")
	}
	switch c, err := NewAddressing(l.Config, root).Choose(ctx, nil); {
	case err != nil:
		l.Note("gossip.advertise", l.Gossip.Advertise, l.SourceOf("gossip.advertise")+" (none now: "+err.Error()+")")
	default:
		l.Note("gossip.advertise", c.Addr.String(), l.SourceOf("gossip.advertise")+" ("+whyAddress(c)+")")
	}
	if l.Containerd.Address == ctrd.Auto {
		socket, why, err := FindSocket(root)
		if err != nil {
			socket, why = ctrd.Auto, "none now: "+err.Error()
		}
		l.Note("containerd.address", socket, l.SourceOf("containerd.address")+" (auto: "+why+")")
	}
	if l.Containerd.Snapshotter == ctrd.Auto {
		name, why, err := findSnapshotter(ctx, l, root)
		if err != nil {
			name, why = ctrd.Auto, "the one that CRI uses, which does not answer now"
		}
		l.Note("containerd.snapshotter", name, l.SourceOf("containerd.snapshotter")+" (auto: "+why+")")
	}
}

// askTimeout is what containerd has to say which snapshotter it is.
const askTimeout = 3 * time.Second

// findSnapshotter asks CRI which one it uses, and says why it is that one.
func findSnapshotter(ctx context.Context, l *config.Loaded, root string) (name, why string, err error) {
	address := l.Containerd.Address
	if address == ctrd.Embedded {
		return ctrd.Auto, "an embedded store has none", nil
	}
	c, err := ctrd.Open(ctrd.Config{Address: address, Namespace: l.Containerd.Namespace, Find: SocketFinder(root)})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, _, err := c.Conn.Health(ctx); err != nil {
		return "", "", err
	}
	name, err = c.Runtime.SnapshotterName(ctx)
	return name, "that of CRI; overlayfs where there is no CRI", err
}
