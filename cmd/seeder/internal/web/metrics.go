package web

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/verdict"
	"seeder/p2p/report"
	"seeder/store"
)

// Measured is what the gauges ask of a node. None of it asks another node or
// containerd's image store: the cost of a scrape depends on neither.
type Measured interface {
	Counts() report.Counts
	Members() report.Members
	Status(ctx context.Context) report.Status
}

// gauges are the metrics that say how things are rather than what was counted:
// they ask the node at each scrape, so that they cannot be out of date.
type gauges struct {
	node  Measured
	disks func(context.Context) []store.Disk
	cache func() (heldBytes, limitBytes int64)
	// secretChanged: the secret on disk is another one than the one in use.
	secretChanged func() bool

	start time.Time
	build prometheus.Metric
	desc  gaugeDescs
}

// gaugeDescs are the names, helps and labels of the gauges, by what they are about.
type gaugeDescs struct {
	all     []*prometheus.Desc
	cluster struct{ state, members, unreached, conflicts, alone *prometheus.Desc }
	images  struct{ images, behind, unconverged, lacking *prometheus.Desc }
	catalog struct{ records, announced, refused *prometheus.Desc }
	node    struct{ uploads, containerd, secret, start *prometheus.Desc }
	disk    struct{ free, reserve, inodes, inodesFree, cache, cacheLimit *prometheus.Desc }
}

// NewGauges returns the gauges of a node, its disks, its cache of frames and its
// secret; each is asked at a scrape.
func NewGauges(node Measured, disks func(context.Context) []store.Disk, cache func() (heldBytes, limitBytes int64), secretChanged func() bool) *gauges {
	build := prometheus.NewDesc("seeder_build_info", "Version of the program; always 1.", []string{"version", "goversion"}, nil)
	return &gauges{
		node: node, disks: disks, cache: cache, secretChanged: secretChanged, start: time.Now(),
		build: prometheus.MustNewConstMetric(build, prometheus.GaugeValue, 1, cli.Version(), runtime.Version()),
		desc:  newGaugeDescs(),
	}
}

func newGaugeDescs() (d gaugeDescs) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		one := prometheus.NewDesc(name, help, labels, nil)
		d.all = append(d.all, one)
		return one
	}
	d.cluster.state = desc("seeder_state", "State of this node and its cluster, as on the status page: 0 green, all is well; 1 amber, something is in progress or missing; 2 red, something failed and needs attention.")
	d.cluster.members = desc("seeder_members", "Nodes of the cluster as this node sees them, by state.", "state")
	d.cluster.unreached = desc("seeder_members_never_reached", "Alive members that have answered this node nothing yet: they are new, this node cannot reach them, or a member makes them up.")
	d.catalog.refused = desc("seeder_announcements_refused", "References of which this node does not take the newest announcement, by reason: its announcer is not in announcers on this host (announcer), the catalog is full (full), or there cannot be such a version by now (version).", "reason")
	d.cluster.conflicts = desc("seeder_conflicts", "Pairs of hosts with the same name or the same identity, by kind. The second host is excluded until it is changed.", "kind")
	d.images.images = desc("seeder_images", "Announced images by their state on this node; excluded images are not for this node.", "state")
	d.images.behind = desc("seeder_image_behind", "Always 1: an announced image that is not ready on this node, with its state; at most 100, those that have not been ready for the longest.", "image", "state")
	d.images.unconverged = desc("seeder_unconverged_since_timestamp_seconds", "Unix time since which the longest-unready image has not been ready; 0 if all images are ready.")
	d.images.lacking = desc("seeder_disk_lacking_bytes", "Largest shortage of disk space of an image that waits for space, in bytes; 0 if none waits.")
	d.catalog.records = desc("seeder_catalog_records", "Records of the catalog, by state: announced, or withdrawn and remembered.", "state")
	d.catalog.announced = desc("seeder_last_announcement_timestamp_seconds", "When the newest announcement or withdrawal of the catalog was made, by its announcer's clock; 0: never.")
	d.node.uploads = desc("seeder_uploads", "Chunks that are on their way to peers.")
	d.node.containerd = desc("seeder_containerd_up", "Whether this host's containerd answers.")
	d.cluster.alone = desc("seeder_alone", "1 if this node knows hosts to join and failed to join any; 0 otherwise, also if there is no host to join.")
	d.node.secret = desc("seeder_secret_changed", "1 if the secret file, or the k3s token if there is none, differs from the secret in use; `seeder reload` or a restart applies it.")
	d.node.start = desc("seeder_start_time_seconds", "When the daemon was started.")
	d.disk.free = desc("seeder_disk_free_bytes", "Bytes that are free on the file system of a directory that images are written to.", "dir")
	d.disk.reserve = desc("seeder_disk_reserve_bytes", "Bytes that images.min_free reserves on the file system of a directory.", "dir")
	d.disk.cache = desc("seeder_cache_bytes", "Bytes of the frame cache: compressed chunks of finished images, kept for other nodes.")
	d.disk.cacheLimit = desc("seeder_cache_limit_bytes", "Current limit of the frame cache in bytes: transfer.cache, or less if the disk is filling up.")
	d.disk.inodes = desc("seeder_disk_inodes", "Inodes of the file system of a directory that images are written to; 0: it has no limit of them.", "dir")
	d.disk.inodesFree = desc("seeder_disk_free_inodes", "Inodes that are free there.", "dir")
	return d
}

// Describe is part of prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- g.build.Desc()
	for _, d := range g.desc.all {
		ch <- d
	}
}

// disksTimeout is what asking containerd for its directory may take, once for each
// containerd.
const disksTimeout = 2 * time.Second

// Collect is part of prometheus.Collector. Each state has a value also when
// nothing is in it: an alert on a missing series never fires.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	members := map[string]int{"alive": 0, "suspect": 0, "dead": 0, "left": 0}
	list := g.node.Members().Members
	for _, m := range list {
		if _, known := members[m.State]; known {
			members[m.State]++
		}
	}
	for state, n := range members {
		send(g.desc.cluster.members, float64(n), state)
	}
	conflicts := map[string]int{report.ConflictName: 0, report.ConflictIdentity: 0}
	for _, c := range g.node.Status(context.Background()).Conflicts {
		conflicts[c.Kind]++
	}
	for kind, n := range conflicts {
		send(g.desc.cluster.conflicts, float64(n), kind)
	}
	send(g.desc.cluster.state, float64(verdict.Decide(verdict.Input{Status: g.node.Status(context.Background()), Members: list}).Level.Value()))
	c := g.node.Counts()
	for state, n := range c.Images {
		send(g.desc.images.images, float64(n), string(state))
	}
	for reason, n := range c.Refused {
		send(g.desc.catalog.refused, float64(n), reason)
	}
	for _, b := range c.Behind {
		send(g.desc.images.behind, 1, cli.ShortRef(b.Reference), string(b.State)) // uncut: series differ in it
	}
	send(g.desc.cluster.unreached, float64(c.NeverReached))
	ch <- g.build
	send(g.desc.images.unconverged, timestamp(c.UnconvergedSince))
	send(g.desc.images.lacking, float64(c.LackingBytes))
	send(g.desc.catalog.records, float64(c.Announced), "announced")
	send(g.desc.catalog.records, float64(c.Withdrawn), "withdrawn")
	send(g.desc.catalog.announced, timestamp(c.LastAnnouncedAt))
	send(g.desc.node.uploads, float64(c.Uploads))
	send(g.desc.node.containerd, truth(c.ContainerdUp))
	send(g.desc.cluster.alone, truth(c.Alone))
	send(g.desc.node.secret, truth(g.secretChanged()))
	send(g.desc.node.start, timestamp(g.start))
	ctx, cancel := context.WithTimeout(context.Background(), disksTimeout)
	defer cancel()
	for _, d := range g.disks(ctx) {
		send(g.desc.disk.free, float64(d.FreeBytes), d.Dir)
		send(g.desc.disk.reserve, float64(d.ReserveBytes), d.Dir)
		send(g.desc.disk.inodes, float64(d.Inodes), d.Dir)
		send(g.desc.disk.inodesFree, float64(d.FreeInodes), d.Dir)
	}
	held, limit := g.cache()
	send(g.desc.disk.cache, float64(held))
	send(g.desc.disk.cacheLimit, float64(limit))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// timestamp is t in Unix time, 0 for none.
func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
