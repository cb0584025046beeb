package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/term"
	"seeder/store"
)

// checkDisk looks at the space below data_dir and below containerd's content store.
func (e *exam) checkDisk(ctx context.Context) []finding {
	cfg := e.config(ctx)
	free, err := config.ParseMinFree(cfg.Images.MinFree)
	if err != nil {
		return one(finding{Name: "disk", State: StateSkipped, Detail: "images.min_free: " + err.Error()})
	}
	reserve := store.Reserve(free)
	out := one(diskFinding(cfg.DataDir, cfg.Images.MinFree, reserve))
	if c, err := e.containerd(ctx); err == nil {
		ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
		defer cancel()
		if dir := c.Files.Dir(ctx); dir != "" {
			out = append(out, diskFinding(dir, cfg.Images.MinFree, reserve))
		}
	}
	return out
}

// nearReserve is how much more than the reserve is worth a warning: a twentieth of
// the file system.
const nearReserve = 20

func diskFinding(dir, minFree string, reserve store.Reserve) finding {
	f := finding{Name: "disk", State: StateOK, Subject: dir}
	s, err := store.SpaceOf(existing(dir), reserve)
	if err != nil {
		f.State, f.Detail, f.Fix = stateProblem, err.Error(), "create the directory, or correct data_dir"
		return f
	}
	f.Detail = fmt.Sprintf("%s of %s free, %s reserved (images.min_free %s)", term.Bytes(s.Free), term.Bytes(s.Total), term.Bytes(s.Reserve), minFree)
	const fix = "free space (`k3s crictl rmi --prune` removes unused images), or lower images.min_free"
	switch {
	case s.Free < s.Reserve:
		f.State, f.Fix = stateProblem, fix
		f.Detail += fmt.Sprintf(": seeder fetches nothing before %s more are free", term.Bytes(s.Reserve-s.Free))
	case s.Files > 0 && s.FreeFiles < s.Files/100:
		f.State, f.Fix = stateProblem, "remove small files, or recreate the file system with more inodes"
		f.Detail = fmt.Sprintf("%d of %d inodes are free: no more files can be created", s.FreeFiles, s.Files)
	case s.Free < s.Reserve+s.Total/nearReserve:
		f.State, f.Fix = StateWarning, fix
	}
	return f
}

// existing is dir, or the nearest above it that is there.
func existing(dir string) string {
	for {
		_, err := store.SpaceOf(dir, store.Reserve{})
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
