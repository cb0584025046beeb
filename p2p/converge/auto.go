package converge

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"seeder/internal/wait"
	"seeder/p2p/catalog"
)

const (
	// autoDelay is how long a node that has just started leaves announcing to the
	// others: what it lacks of the catalog arrives within a second of joining.
	autoDelay = 3 * time.Second
	// maxAuto is how many references are announced by themselves at once.
	maxAuto = 2
)

// auto announces what nobody has announced. The converge loop owns it; the mutex
// is for its jobs.
type auto struct {
	cfg   Config
	since time.Time
	jobs  sync.WaitGroup
	ended wait.Signal // there may be room for another one

	mu    sync.Mutex
	busy  int
	tried map[string]autoTry // by reference
}

// autoLooks is after how long a target that is not to be announced is looked at once
// more: k3s labels what it has imported from agent/images a moment after the import.
var autoLooks = []time.Duration{5 * time.Second, time.Minute}

// autoTry is what became of one target of a reference.
type autoTry struct {
	target    digest.Digest
	done      bool // announced, or not to be
	running   bool
	looks     int // how often it was found not to be
	failures  int
	notBefore time.Time
}

func newAuto(cfg Config, now time.Time) auto {
	return auto{cfg: cfg, since: now, ended: wait.NewSignal(), tried: map[string]autoTry{}}
}

func (a *auto) drain() { a.jobs.Wait() }

// announceNew announces those of the images of this host that a pattern of
// images.auto names and that the cluster does not know.
func (au *auto) announceNew(ctx context.Context, have map[string]digest.Digest, now time.Time) {
	if !au.cfg.autoOn() || now.Sub(au.since) < autoDelay {
		return
	}
	if !au.cfg.MayAnnounce() {
		return
	}
	have = au.underNormalNames(have)
	au.forget(have)
	for ref, target := range have {
		since, _ := au.cfg.Catalog.Get(ref)
		if au.unknownBuild(ref, target) && au.begin(ref, target, now) {
			au.jobs.Go(func() {
				named, err := au.announceItself(ctx, ref, target, since)
				if au.end(ref, named, err, time.Now()) {
					au.cfg.Log.Warn("failed to announce an image of images.auto; will retry", "ref", ref, "err", err)
				}
			})
		}
	}
}

// underNormalNames is have with each image that is here only under another way to write
// its reference, as `ctr images import` leaves short names, under the reference itself:
// the store finds it by that. What is not announced for its name is said once: an invalid
// name, and a build beside another one under the reference itself, since the store alone
// knows which of them is the later one.
func (au *auto) underNormalNames(have map[string]digest.Digest) map[string]digest.Digest {
	out := make(map[string]digest.Digest, len(have))
	for name, target := range have {
		if strings.HasPrefix(name, string(digest.SHA256)+":") {
			continue // an image id
		}
		named, err := reference.ParseDockerRef(name)
		switch {
		case err != nil:
			if au.begin(name, target, time.Now()) {
				au.cfg.Log.Info("ignored an image with an invalid reference (images.auto)", "name", name, "err", err)
				au.end(name, true, nil, time.Now())
			}
			out[name] = target
		case named.String() == name:
			out[name] = target
		case have[named.String()] == "":
			out[named.String()] = target
		case have[named.String()] != target && !strings.Contains(name, "@"):
			mayMean := au.cfg.AutoLocal || au.cfg.Auto.Match(named.String())
			if mayMean && au.begin(name, target, time.Now()) {
				au.cfg.Log.Info("ignored an image whose name the kubelet does not look up: its reference stands for another build (images.auto); run the command to announce the newer one",
					"name", name, "ref", named.String(), "digest", target, "command", "seeder announce "+named.String())
				au.end(name, true, nil, time.Now())
			}
			out[name] = target // for forget; unknownBuild passes over it
		}
	}
	return out
}

// autoTimeout bounds one announcement: the image is read and unpacked.
const autoTimeout = 10 * time.Minute

// announceItself announces ref if images.auto names it, and reports whether it does. since
// is its record in the catalog by which it is unknown: the cluster may make it known meanwhile.
func (au *auto) announceItself(ctx context.Context, ref string, target digest.Digest, since catalog.Record) (named bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, autoTimeout)
	defer cancel()
	if !au.announcesItself(ctx, ref) {
		return false, nil
	}
	err = au.cfg.Announce(ctx, ref, since)
	if errors.Is(err, catalog.ErrSuperseded) {
		return false, nil
	}
	if err == nil {
		au.cfg.Log.Debug("announced an image of images.auto", "ref", ref, "digest", target)
	}
	return true, err
}

// unknownBuild reports whether target is no version of ref that the cluster has
// announced or withdrawn, as far as this host has seen.
func (au *auto) unknownBuild(ref string, target digest.Digest) bool {
	named, err := reference.ParseDockerRef(ref)
	if err != nil || named.String() != ref || strings.Contains(ref, "@") {
		return false // no reference of a pod, or CRI's name for what has another one
	}
	rec, ok := au.cfg.Catalog.Get(ref)
	if !ok {
		rec, ok = au.cfg.Catalog.Buried(ref)
	}
	if !ok {
		return true
	}
	a := rec.Announcement()
	// An announced reference is the business of its task.
	return a.Withdrawn && au.cfg.Catalog.Reached(rec) && !au.isVersion(a, target)
}

func (au *auto) isVersion(a catalog.Announcement, target digest.Digest) bool {
	return target == a.Target.Digest || target == au.cfg.Catalog.ReachedTarget(a.Reference) ||
		slices.Contains(au.cfg.Catalog.History(a.Reference), target)
}

// autoOn reports whether this node announces anything by itself.
func (c *Config) autoOn() bool { return len(c.Auto) > 0 || c.AutoLocal }

// announcesItself reports whether images.auto names ref.
func (au *auto) announcesItself(ctx context.Context, ref string) bool {
	if len(au.cfg.Auto) > 0 && au.cfg.Auto.Match(ref) {
		return true
	}
	if !au.cfg.AutoLocal {
		return false
	}
	pulled, err := au.pulled(ctx, ref)
	if err != nil {
		au.cfg.Log.Debug("failed to find the origin of an image", "ref", ref, "err", err)
	}
	return err == nil && !pulled
}

// pulled reports whether what ref stands for here came from a registry: the kubelet, or
// somebody, has pulled it. Newer versions of k3s label what they import from
// agent/images as if it were; their own label tells that it was not.
func (au *auto) pulled(ctx context.Context, ref string) (bool, error) {
	pulled, err := au.cfg.Store.FromRegistry(ctx, ref)
	if err != nil || !pulled {
		return false, err
	}
	preloaded, err := au.cfg.Store.Preloaded(ctx, ref)
	return !preloaded, err
}

// forget drops what was tried of images that are not there any more.
func (a *auto) forget(have map[string]digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref, t := range a.tried {
		if have[ref] != t.target && !t.running {
			delete(a.tried, ref)
		}
	}
}

// begin reports whether target is to be tried now.
func (a *auto) begin(ref string, target digest.Digest, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, known := a.tried[ref]
	if a.busy >= maxAuto || known && (t.running || t.done || now.Before(t.notBefore)) {
		return false
	}
	a.busy++
	t.target, t.running = target, true
	a.tried[ref] = t
	return true
}

// end records a try; news is the first failure in a row.
func (a *auto) end(ref string, named bool, err error, now time.Time) (news bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy--
	t := a.tried[ref]
	t.running = false
	switch {
	case err != nil:
		t.failures++
		news = t.failures == 1
		t.notBefore = now.Add(backoffPause(t.failures, rand.Float64()))
	case named || t.looks == len(autoLooks):
		t.done = true
	default:
		t.notBefore = now.Add(autoLooks[t.looks])
		t.looks++
	}
	a.tried[ref] = t
	a.ended.Set()
	return news
}
