// Package dst is a deterministic simulation of clusters: real nodes on real image
// stores, in virtual time, under a course of faults that a seed decides.
//
// A course is data: what happens to which host at which virtual time. It is drawn from
// a seed before anything runs, so that it can be printed, run again, and made shorter
// as long as it still fails. Everything of this package is in its tests: they may
// import p2p and store both.
//
// Nodes are those of seeder daemon but for three things: the network is
// p2ptest.Network, containerd is the embedded store, and the clock is that of
// testing/synctest. Each host's data_dir is a file system of its own, which can be
// full, lose what was not synced, and rot.
//
// The seed decides the course, not the order in which goroutines run in one virtual
// instant, nor the dice of memberlist and of TLS.
package dst
