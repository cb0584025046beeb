package store

import (
	"context"
	"errors"

	"seeder/store/ctrd"
	"seeder/store/stage"
)

// disks are the file systems that this host's images are written to: what is reserved of
// them, and what of it the cache of frames may have. It writes nothing; it has the cache
// give way.
type disks struct {
	cfg   Config
	ctrd  *ctrd.Containerd
	stage *stage.Dir
}

// room asks for room in data_dir and in containerd's directory, and has the cache
// give way where there is none. One that cannot be seen from here is passed over.
func (d *disks) room(ctx context.Context, staged, stored need) error {
	err := d.ask(ctx, staged, stored)
	var lacks *RoomError
	if !errors.As(err, &lacks) {
		return err
	}
	data, derr := d.cfg.statFS(d.cfg.DataDir)
	if derr != nil || data.device != lacks.device {
		return d.explain(ctx, lacks)
	}
	freed := d.stage.Shrink(stage.Use{Bytes: lacks.Lacking, Files: lacks.LackingFiles})
	if freed != (stage.Use{}) {
		d.cfg.Log.Info("removed cached frames to make room for an image", "freed_bytes", freed.Bytes, "dir", d.cfg.DataDir)
		err = d.ask(ctx, staged, stored)
	}
	if errors.As(err, &lacks) {
		return d.explain(ctx, lacks)
	}
	return err
}

// ask is room as the disks are now.
func (d *disks) ask(ctx context.Context, staged, stored need) error {
	data, err := d.cfg.statFS(d.cfg.DataDir)
	if err != nil {
		return nil
	}
	root := d.ctrd.Files.Dir(ctx)
	if root == "" {
		return data.room(staged, d.cfg.MinFree)
	}
	blobs, err := d.cfg.statFS(root)
	if err != nil {
		return data.room(staged, d.cfg.MinFree)
	}
	if blobs.device == data.device {
		return data.room(staged.plus(stored), d.cfg.MinFree)
	}
	if err := data.room(staged, d.cfg.MinFree); err != nil {
		return err
	}
	return blobs.room(stored, d.cfg.MinFree)
}

// explain adds what would make room: the versions that are kept for rolling back.
func (d *disks) explain(ctx context.Context, e *RoomError) error {
	if kept, err := d.ctrd.Images.KeptBytes(ctx); err == nil {
		e.Kept = kept
	}
	return e
}

// list is data_dir and, where it can be seen from here, containerd's directory.
func (d *disks) list(ctx context.Context) []Disk {
	var out []Disk
	for _, dir := range []string{d.cfg.DataDir, d.ctrd.Files.Dir(ctx)} {
		if dir == "" || len(out) > 0 && out[0].Dir == dir {
			continue
		}
		if f, err := d.cfg.statFS(dir); err == nil {
			out = append(out, Disk{Dir: dir, FreeBytes: f.free, ReserveBytes: d.cfg.MinFree.of(f.total),
				FreeInodes: f.freeFiles, Inodes: f.files})
		}
	}
	return out
}

// cacheBound is how much the cache may hold while it holds used: no more than
// transfer.cache, and nothing that images.min_free or the kubelet wants to be free.
func (d *disks) cacheBound(used stage.Use) stage.Use {
	f, err := d.cfg.statFS(d.cfg.DataDir)
	if err != nil {
		return stage.Use{} // the directory itself cannot be used
	}
	most := d.cfg.Cache.Bytes
	if share := int64(d.cfg.Cache.Share * float64(f.total)); share > 0 {
		most = max(most, min(share, MaxCacheShare))
	}
	leaves := max(d.cfg.MinFree.of(f.total), int64(cacheLeavesFree*float64(f.total)))
	bound := stage.Use{Bytes: max(0, min(most, used.Bytes+f.free-leaves)), Files: stage.Unbounded.Files}
	if f.files > 0 {
		bound.Files = max(0, used.Files+f.freeFiles-int64(cacheLeavesInodes*float64(f.files)))
	}
	return bound
}

// giveWay shrinks the cache where others have taken its room.
func (d *disks) giveWay() {
	if freed := d.stage.Shrink(stage.Use{}); freed != (stage.Use{}) {
		d.cfg.Log.Info("removed cached frames: the disk is filling up", "freed_bytes", freed.Bytes, "dir", d.cfg.DataDir)
	}
}
