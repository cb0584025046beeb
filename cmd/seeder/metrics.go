package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"seeder/p2p"
)

// gauges are the metrics that say how things are rather than what was counted:
// they ask the node at each scrape, so that they cannot be out of date.
type gauges struct {
	cluster    cluster
	members    *prometheus.Desc
	images     *prometheus.Desc
	containerd *prometheus.Desc
}

func newGauges(c cluster) *gauges {
	return &gauges{
		cluster:    c,
		members:    prometheus.NewDesc("seeder_members", "Nodes of the cluster as this node sees them, by state.", []string{"state"}, nil),
		images:     prometheus.NewDesc("seeder_images", "Announced images by their state on this node; waiting are also those whose last try failed.", []string{"state"}, nil),
		containerd: prometheus.NewDesc("seeder_containerd_up", "Whether this host's containerd answers.", nil, nil),
	}
}

// Describe is part of prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- g.members
	ch <- g.images
	ch <- g.containerd
}

// Collect is part of prometheus.Collector. Each state has a value also when
// nothing is in it: an alert on a missing series never fires.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	members := map[string]int{"alive": 0, "suspect": 0, "dead": 0, "left": 0}
	for _, m := range g.cluster.Members().Members {
		if _, known := members[m.State]; known {
			members[m.State]++
		}
	}
	status := g.cluster.Status(context.Background())
	images := map[string]int{string(p2p.Ready): status.Images.Ready, string(p2p.Fetching): 0, string(p2p.Importing): 0}
	for _, t := range status.Transfers {
		images[string(t.State)]++
	}
	images[string(p2p.Waiting)] = max(0, status.Images.Total-status.Images.Ready-len(status.Transfers))
	send := func(desc *prometheus.Desc, byState map[string]int) {
		for state, n := range byState {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), state)
		}
	}
	send(g.members, members)
	send(g.images, images)
	up := 0.0
	if status.Containerd.OK {
		up = 1
	}
	ch <- prometheus.MustNewConstMetric(g.containerd, prometheus.GaugeValue, up)
}
