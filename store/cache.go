package store

import (
	"context"
	"sync"
	"time"
)

// MaxCacheShare bounds what a share amounts to: on a disk of 8 TB a twentieth would
// be 400 GB, of images that nobody asks for any more. A size may be larger.
const MaxCacheShare = 10 << 30

const (
	// cacheLeavesFree is the share of the disk that the cache never makes use of: the
	// kubelet removes images from 85 % used on (imageGCHighThresholdPercent), and
	// evicts pods where less than 15 % of imagefs or 10 % of nodefs is free (k3s: 5 %).
	// See https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction
	// and https://kubernetes.io/docs/concepts/architecture/garbage-collection. Two per
	// cent more are for what others write until the cache gives way.
	cacheLeavesFree = 0.17
	// cacheLeavesInodes is the same of the inodes, of which the kubelet wants 5 %.
	cacheLeavesInodes = 0.07
	// cacheLook is how often the disk is polled, to see whether the cache has to give way.
	cacheLook = 5 * time.Second
)

// Cache says how much the cache holds, and how much it may hold now: the frames of finished
// blobs, which give way to everything else.
func (s *Store) Cache() (heldBytes, limitBytes int64) {
	held, limit := s.stage.Cache()
	return held.Bytes, limit.Bytes
}

// keeping polls the disk every few seconds until stop, which waits for it.
type keeping struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (k *keeping) start(look func()) {
	ctx, cancel := context.WithCancel(context.Background())
	k.cancel = cancel
	k.done.Go(func() {
		tick := time.NewTicker(cacheLook)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				look()
			}
		}
	})
}

func (k *keeping) stop() {
	k.cancel()
	k.done.Wait()
}
