package p2p

import (
	"context"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/images"
	"seeder/p2p/report"
)

// janitorInterval is how long what nobody needs any more may lie about.
const janitorInterval = 30 * time.Second

// janitor closes the images that nobody uses, and removes what was left behind.
type janitor struct {
	dir     string // data_dir
	store   Keeper
	catalog *catalog.Catalog
	images  *images.Set
	health  *health
	loop    *converge.Loop
	log     *slog.Logger
}

func (j *janitor) run(ctx context.Context) {
	tick := time.NewTicker(janitorInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			j.images.Sweep(now)
			if j.health.down() != "" {
				continue
			}
			j.tidy(ctx)
			j.loop.Tend(ctx, now)
		}
	}
}

// tidy lets the store remove what belongs to no announcement.
func (j *janitor) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, janitorInterval)
	defer cancel()
	seeds, targets := j.announced()
	if err := j.store.Tidy(ctx, seeds, targets); err != nil && ctx.Err() == nil {
		if j.health.ask(ctx); j.health.down() == "" {
			j.log.Warn("failed to remove unneeded data", "err", err)
		}
	}
}

// announced are the seed indexes and the targets of what is announced now.
func (j *janitor) announced() (seeds, targets []digest.Digest) {
	for _, rec := range j.catalog.All() {
		if a := rec.Announcement(); !a.Withdrawn {
			seeds, targets = append(seeds, a.Seed.Digest), append(targets, a.Target.Digest)
		}
	}
	return seeds, targets
}

// diskStatus is how full the disk of data_dir is, and what of it is cache.
func (j *janitor) diskStatus() report.DiskStatus {
	held, limit := j.store.Cache()
	return report.DiskStatus{FreeBytes: diskOf(j.dir).free, CacheBytes: held, CacheLimitBytes: limit}
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

// hostOf is what a node says of its host, with its data_dir in dir.
func hostOf(dir string, h *health) report.Host {
	disk, c := diskOf(dir), h.Status()
	out := report.Host{FreeBytes: disk.free, DiskBytes: disk.all}
	if out.Containerd = c.Version; !c.OK {
		out.Containerd, out.ContainerdAway = "", c.Reason
	}
	return out
}
