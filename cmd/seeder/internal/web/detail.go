package web

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/term"
	"seeder/p2p/report"
)

// detailView is what unfolds below an image.
type detailView struct {
	Digest    string
	For       string // which nodes it is for
	Platforms string
	On, Aside names // nodes that are ready, and those that should not hold it
	Layers    []layerRow
	MoreBytes string // of the layers that are not listed
	More      int
	Kept      []keptRow
}

type layerRow struct{ Digest, Size, For string }

// keptRow is an earlier version that this node still has.
type keptRow struct{ Digest, Command string }

const (
	maxLayerRows = 12
	maxKeptRows  = 5
	maxPlaces    = 6 // nodes that are named
)

func newDetailView(img report.ImageState, d report.ImageDetail) detailView {
	v := detailView{Digest: cleanText(img.Digest, 80), For: "every node", Platforms: "any"}
	if len(img.On) > 0 {
		v.For = "nodes with " + cleanText(strings.Join(img.On, ", "), maxReference)
	}
	if len(d.Platforms) > 0 {
		v.Platforms = cleanText(strings.Join(d.Platforms, ", "), maxReference)
	}
	var on, aside []string
	for _, n := range img.Nodes {
		switch n.State {
		case report.Ready:
			on = append(on, n.Name)
		case report.Excluded:
			aside = append(aside, n.Name)
		}
	}
	v.On, v.Aside = namesOf(on, len(on), maxPlaces, cleanName), namesOf(aside, len(aside), maxPlaces, cleanName)
	var rest int64
	for i, l := range d.Layers {
		if i >= maxLayerRows {
			v.More++
			rest += l.Bytes
			continue
		}
		row := layerRow{Digest: cleanText(cli.ShortDigest(l.Digest), maxName), Size: term.Bytes(l.Bytes)}
		if len(d.Platforms) > 1 {
			row.For = cleanText(strings.Join(l.Platforms, ", "), maxName)
		}
		v.Layers = append(v.Layers, row)
	}
	if v.More > 0 {
		v.MoreBytes = term.Bytes(rest)
	}
	short := cli.ShortRef(img.Reference)
	for i, digest := range d.Kept[:min(len(d.Kept), maxKeptRows)] {
		command := fmt.Sprintf("seeder announce %s@%s", short, digest)
		if i == 0 {
			command = "seeder announce --rollback " + short
		}
		v.Kept = append(v.Kept, keptRow{cleanText(cli.ShortDigest(digest), maxName), cleanText(command, 2*maxReference)})
	}
	return v
}

// details keeps what the node says of the images of the last answers. It is safe for
// concurrent use.
type details struct {
	cluster Cluster

	mu    sync.Mutex
	known map[string]known // by reference
}

type known struct {
	version uint64
	until   time.Time
	detail  report.ImageDetail
}

const (
	// keepDetail is for how long a detail counts: which earlier versions are kept may change.
	keepDetail = 30 * time.Second
	// detailTimeout bounds what an answer waits for all details of it: containerd is asked.
	detailTimeout = 2 * time.Second
	// maxDetails bounds what is kept: a few pages of images, a few KiB each.
	maxDetails = 4 * maxImageRows
)

// of asks the node once for each image and half minute.
func (d *details) of(ctx context.Context, img report.ImageState, now time.Time) report.ImageDetail {
	d.mu.Lock()
	k, ok := d.known[img.Reference]
	d.mu.Unlock()
	if ok && k.version == img.Version && now.Before(k.until) {
		return k.detail
	}
	if ctx.Err() != nil {
		return report.ImageDetail{}
	}
	k = known{img.Version, now.Add(keepDetail), d.cluster.Describe(ctx, img.Reference)}
	if ctx.Err() != nil { // it is not whole
		return k.detail
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || len(d.known) >= maxDetails {
		d.known = map[string]known{}
	}
	d.known[img.Reference] = k
	return k.detail
}
