//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/kubelet"
	"seeder/cmd/seeder/internal/registry"
	"seeder/cmd/seeder/internal/rollout"
	"seeder/cmd/seeder/internal/web"
	"seeder/internal/pattern"
	"seeder/p2p"
	"seeder/p2p/netaddr"
	"seeder/p2p/trust"
	"seeder/store"
	"seeder/store/ctrd"
	"seeder/store/export"
)

// wired is a node on its store: the one place where both are known.
type wired struct {
	node     *p2p.Node
	rollouts *rollout.Watch
	store    *store.Store
	registry *prometheus.Registry
}

// wire makes the node that cfg describes; it is not open yet, its store is.
func wire(ctx context.Context, cfg config.Config, secrets trust.Secrets, log *slog.Logger) (*wired, error) {
	upload, err := config.ParseRate(cfg.Transfer.UploadLimit)
	if err != nil {
		return nil, fmt.Errorf("transfer.upload_limit: %w", err)
	}
	download, err := config.ParseRate(cfg.Transfer.DownloadLimit)
	if err != nil {
		return nil, fmt.Errorf("transfer.download_limit: %w", err)
	}
	announcers, excluded, err := cfg.ParseAnnouncers()
	if err != nil {
		return nil, err
	}
	accept, err := pattern.ParseList(cfg.Images.Accept)
	if err != nil {
		return nil, fmt.Errorf("images.accept: %w", err)
	}
	auto, autoLocal, err := cfg.Images.ParseAuto()
	if err != nil {
		return nil, fmt.Errorf("images.auto: %w", err)
	}
	minFree, err := config.ParseMinFree(cfg.Images.MinFree)
	if err != nil {
		return nil, fmt.Errorf("images.min_free: %w", err)
	}
	cache, err := config.ParseMinFree(cfg.Transfer.Cache)
	if err != nil {
		return nil, fmt.Errorf("transfer.cache: %w", err)
	}
	platform := cfg.Containerd.Platform
	if platform == ctrd.Auto {
		platform = ""
	}
	s, err := store.Open(ctx, store.Config{
		DataDir: cfg.DataDir,
		Containerd: ctrd.Config{
			Address: cfg.Containerd.Address, Namespace: cfg.Containerd.Namespace,
			Snapshotter: cfg.Containerd.Snapshotter, Root: filepath.Join(cfg.DataDir, "embedded"),
			Find: k3s.SocketFinder("/"),
			Pin:  cfg.Images.Pin, Platform: platform, Log: log.With("component", "containerd"),
		},
		Cache:   store.Reserve(cache),
		MinFree: store.Reserve(minFree),
		Log:     log.With("component", "store"),
	})
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	var deltas p2p.Deltas // none where they are off
	if cfg.Transfer.Deltas == config.DeltasAuto {
		deltas = s.Deltas
	}
	w := &wired{store: s, registry: prometheus.NewRegistry(), rollouts: rollout.New(log)}
	w.node = p2p.New(p2p.Config{
		Name: cfg.NodeName, Version: cli.Version(), DataDir: cfg.DataDir, Machine: trust.MachineID("/etc/machine-id"),
		GossipBind: cfg.Gossip.Bind, Advertise: k3s.NewAddressing(cfg, "/").Choose, AdvertisePort: cfg.Gossip.AdvertisePort(), Changes: netaddr.Watch,
		TransferBind: cfg.Transfer.Bind, TransferAdvertise: cfg.Transfer.Advertise,
		Join:    k3s.FollowJoins(cfg, log),
		Secrets: secrets, Announcers: announcers, Excluded: excluded, Accept: accept, Labels: cfg.ParseLabels(),
		Blocked: kubelet.NewWatch("/").Blocked, Published: w.rollouts.Announced,
		Follow: cfg.Images.Follow, Auto: auto, AutoLocal: autoLocal,
		KeepPrevious: cfg.Images.KeepPrevious, Pinned: cfg.Images.Pin,
		UploadLimit: upload, DownloadLimit: download, Deltas: deltas,
		Log: log, Registerer: w.registry,
	}, storeAdapter{s})
	return w, nil
}

// ImportArchive is part of announcer.
func (w *wired) ImportArchive(ctx context.Context, archive io.Reader, ref string) (control.Imported, error) {
	if err := w.node.MayAnnounce(); err != nil {
		return control.Imported{}, err
	}
	out, err := w.store.ImportArchive(ctx, archive, ref)
	return control.Imported{Names: out.Names, LeftOut: out.LeftOut, Targets: out.Targets, TakeBack: out.TakeBack}, err
}

// Local is part of announcer.
func (w *wired) Local(ctx context.Context, ref string) (control.Local, error) {
	local, err := w.store.Local(ctx, ref)
	return control.Local(local), err
}

// References is part of announcer. While containerd is away there are no local ones.
func (w *wired) References(ctx context.Context) control.References {
	known := control.References{Announced: w.node.References(), Local: []string{}}
	have, err := w.store.List(ctx)
	if err != nil {
		return known
	}
	for ref := range have {
		// CRI keeps each image under its digest and its id, too.
		if full, err := cli.NormalizeRef(ref); err == nil && full == ref && !strings.Contains(ref, "@") {
			known.Local = append(known.Local, ref)
		}
	}
	slices.Sort(known.Announced)
	slices.Sort(known.Local)
	return known
}

// Announce is part of announcer.
func (w *wired) Announce(ctx context.Context, o control.Order) (control.Announced, error) {
	a, err := w.node.Announce(ctx, o.Ref, p2p.Options{At: o.At, Rollback: o.Rollback, On: o.On, AnyPlatform: o.AnyPlatform, NoDelta: o.NoDelta, Settled: o.Settled})
	if err != nil {
		return control.Announced{}, err
	}
	return control.Announced{
		Reference: a.Reference, Digest: a.Target.Digest.String(), Version: a.Version, Bytes: a.Bytes, Said: a.Said,
		Standing: control.Standing{Already: a.Version == a.Before.Version, By: a.Before.By, At: a.Before.At},
	}, nil
}

// Export is part of control.Exporter.
func (w *wired) Export(ctx context.Context, o control.ExportOrder, begin func(control.Exported, func(io.Writer) error) error) error {
	err := w.store.Export(ctx, export.Order(o), func(ctx context.Context, a *export.Archive) error {
		return begin(control.Exported(a.Summary), func(out io.Writer) error { return a.Write(ctx, out) })
	})
	if errors.Is(err, export.ErrSame) {
		return cli.WithCode(cli.ExitUsage, err)
	}
	return err
}

// Arriving is part of registry.Images.
func (w *wired) Arriving(ctx context.Context, d digest.Digest) (registry.Arriving, error) {
	blob, err := w.store.OpenArriving(ctx, d)
	if err != nil {
		return nil, err // no interface with a nil blob in it
	}
	return blob, nil
}

// Held is part of registry.Images.
func (w *wired) Held(ctx context.Context, d digest.Digest) (registry.Blob, error) {
	blob, err := w.store.OpenHeld(ctx, d)
	if err != nil {
		return nil, err // no interface with a nil blob in it
	}
	return blob, nil
}

// MayAnnounce is part of registry.Publisher.
func (w *wired) MayAnnounce() error { return w.node.MayAnnounce() }

// Room is part of registry.Publisher.
func (w *wired) Room(ctx context.Context, bytes int64) error { return w.store.Room(ctx, bytes) }

// Publish is part of registry.Publisher.
func (w *wired) Publish(ctx context.Context, archive io.Reader, ref string) error {
	imported, err := w.ImportArchive(ctx, archive, ref)
	if err == nil {
		if _, err = w.Announce(ctx, control.Order{Ref: ref, Settled: imported.Targets[ref]}); err != nil {
			err = errors.Join(err, imported.TakeBack(context.WithoutCancel(ctx), ref))
		}
	}
	if errors.Is(err, ctrd.ErrUnavailable) {
		return fmt.Errorf("%w: %w", registry.ErrNotNow, err)
	}
	return err
}

// storeAdapter gives an image the type that p2p speaks as it is opened; chunks do not pass
// through here.
type storeAdapter struct{ *store.Store }

// Image is part of p2p.Store.
func (s storeAdapter) Image(ctx context.Context, index []byte) (p2p.Image, error) {
	img, err := s.Store.Image(ctx, index)
	if err != nil {
		return nil, err // no interface with a nil image in it
	}
	return img, nil
}

// register adds to the node's counters everything else that /metrics shows.
func (w *wired) register(node web.Measured, secretChanged func() bool) {
	compressed := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "seeder_chunks_compressed_total",
		Help: "Chunks that this node compressed; those that it received are passed on as they came.",
	}, func() float64 { return float64(w.store.Compressed()) })
	w.registry.MustRegister(compressed, web.NewGauges(node, w.store.Disks, w.store.Cache, secretChanged), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
