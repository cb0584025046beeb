package hosts

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"seeder/test/harness"
)

// fault is one thing that goes wrong on one host, or between it and others.
type fault struct {
	name  string
	hold  time.Duration                                // at least
	spare bool                                         // a host that people import images on is not its victim
	stays bool                                         // the cluster has to converge while it lasts
	able  func(c *chaos, h *harness.Host) bool         // whether it can happen to a host; nil: to each
	begin func(c *chaos, h *harness.Host) (end func()) // end waits for nothing but what it starts
}

// faults are the ways in which things go wrong.
var faults = slices.Concat(processFaults, linkFaults, diskFaults, storeFaults, powerFaults, nameFaults)

// processFaults happen to the daemons and to their clock.
var processFaults = []fault{
	{name: "seeder killed", begin: func(c *chaos, h *harness.Host) func() {
		c.killSeeder(h)
		return func() { c.startSeeder(h) }
	}},
	{name: "seeder frozen", hold: 12 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		asked := c.commands(h)
		h.Seeder.Freeze()
		return func() { h.Seeder.Thaw(); asked() }
	}},
	{name: "containerd killed", spare: true, begin: func(c *chaos, h *harness.Host) func() {
		h.Containerd.Stop(c.t, syscall.SIGKILL)
		return h.StartContainerd
	}},
	{name: "containerd away", hold: 20 * time.Second, spare: true, begin: func(c *chaos, h *harness.Host) func() {
		h.Containerd.Stop(c.t, syscall.SIGTERM)
		return h.StartContainerd
	}},
	{name: "containerd hangs", hold: 8 * time.Second, spare: true, begin: func(_ *chaos, h *harness.Host) func() {
		h.Containerd.Freeze()
		return h.Containerd.Thaw
	}},
	{name: "clock a day ahead", hold: 4 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		jump(h, 24*time.Hour)
		return func() { jump(h, 0) }
	}},
	{name: "clock a day behind", hold: 4 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		jump(h, -24*time.Hour)
		return func() { jump(h, 0) }
	}},
	{name: "no file descriptors", hold: 5 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		asked := c.commands(h)
		before := limitFiles(h, h.Seeder, "1")
		more := c.commands(h)
		return func() {
			limitFiles(h, h.Seeder, before)
			asked()
			more()
		}
	}},
}

// linkFaults happen to the links between hosts.
var linkFaults = []fault{
	{name: "one-way loss", hold: 8 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		others := c.others(h)
		drop(h, 100, others[c.rng.IntN(len(others))])
		return func() { dropNothing(h) }
	}},
	{name: "5 % loss", hold: 4 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		drop(h, 5)
		return func() { dropNothing(h) }
	}},
	{name: "200 ms delay", hold: 4 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		return harness.SlowLink(h, 100*time.Millisecond) // each way
	}},
	{name: "cable pulled", hold: 10 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		h.Unplug()
		return h.Replug
	}},
}

// diskFaults happen to what is below data_dir and below containerd.
var diskFaults = []fault{
	{name: "data_dir full", hold: 5 * time.Second, begin: func(_ *chaos, h *harness.Host) func() {
		fill(h, dataDir)
		return func() { empty(h, dataDir) }
	}},
	{name: "containerd's disk full", hold: 5 * time.Second, spare: true, begin: func(_ *chaos, h *harness.Host) func() {
		fill(h, containerdRoot)
		return func() { empty(h, containerdRoot) }
	}},
	{name: "data_dir read-only", hold: 5 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		breakData(h)
		return func() {
			c.killSeeder(h)
			fixData(h)
			c.startSeeder(h)
		}
	}},
	{name: "staging garbled", hold: 3 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		return c.pacing(func() { c.garbleStaging(h) })
	}},
	{name: "catalog garbled", spare: true, begin: func(c *chaos, h *harness.Host) func() {
		c.killSeeder(h)
		if err := garble(c.rng, h.Path(dataDir+"/catalog.db"), 1+c.rng.IntN(200)); err != nil {
			c.t.Fatal(err)
		}
		return func() { c.startSeeder(h) }
	}},
	{name: "small disk", stays: true, begin: smallDisk},
	{name: "few inodes", stays: true, begin: fewInodes},
	{name: "blob rots", begin: blobRots},
}

// storeFaults are what others do to containerd's store, as they may.
var storeFaults = []fault{
	{name: "garbage collection", hold: 4 * time.Second, begin: func(c *chaos, h *harness.Host) func() {
		return c.pacing(func() { collect(h) })
	}},
	{name: "content pruned", hold: 4 * time.Second, spare: true, begin: func(c *chaos, h *harness.Host) func() {
		c.pruned.Store(h)
		return c.pacing(func() { h.CtrCmd("content", "prune", "references").Run() })
	}},
	{name: "images removed", spare: true, begin: func(c *chaos, h *harness.Host) func() {
		c.removeImages(h)
		return func() {}
	}},
	{name: "kubelet collects images", hold: 4 * time.Second, spare: true, begin: func(c *chaos, h *harness.Host) func() {
		return c.pacing(func() { c.kubeletCollects(h) })
	}},
	{name: "eviction pressure", hold: 5 * time.Second, spare: true, begin: func(c *chaos, h *harness.Host) func() {
		fillBut(h, containerdRoot, 24<<20)
		end := c.pacing(func() { c.kubeletCollects(h) })
		return func() { end(); empty(h, containerdRoot) }
	}},
	{name: "containerd upgraded", spare: true, begin: func(c *chaos, h *harness.Host) func() {
		h.Containerd.Stop(c.t, syscall.SIGTERM)
		c.upgrade(h)
		return h.StartContainerd
	}},
}

// pacing does something all the time until the returned function is called.
func (c *chaos) pacing(do func()) (end func()) {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for {
			do()
			select {
			case <-stop:
				return
			case <-pace.C:
			}
		}
	}()
	return func() { close(stop); <-done }
}

// garbleStaging overwrites a piece of what is staged on a host. The random numbers
// are not the suite's: how often this happens depends on time.
func (c *chaos) garbleStaging(h *harness.Host) {
	for _, dir := range []string{"stage", "cache"} {
		files, _ := filepath.Glob(h.Path(filepath.Join(dataDir, dir, "*.frames")))
		if len(files) > 0 {
			garble(rand.New(rand.NewPCG(uint64(len(files)), 1)), files[len(files)/2], 1) // it may be gone again
		}
	}
}

// commands asks the daemon of a host while something happens to it. The returned
// function waits until each command has ended: one that hangs is a violation.
func (c *chaos) commands(h *harness.Host) (ended func()) {
	var done []chan error
	for _, args := range [][]string{{"images"}, {"members"}, {"wait", "--timeout", "15s"}, {"withdraw", "docker.io/library/none:v1"}} {
		ch := make(chan error, 1)
		go func() { ch <- c.try(h, nil, args...) }() // received below
		done = append(done, ch)
	}
	return func() {
		for _, ch := range done {
			<-ch // what it says depends on the moment
		}
	}
}
