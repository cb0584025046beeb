// Package p2p keeps this node converged with its cluster: what the catalog says
// is what this host holds, for every announced reference, forever.
//
// It owns the order in which the rooms of a node are opened and closed, which of them hears
// what from which (assemble.go), the transfer port (port.go), the watch over containerd
// (health.go), and what has happened (events.go). The rooms below own the rest: announce
// (what this host tells), catalog (what should be), exchange (how catalogs become equal),
// converge (what this host does about each announcement), fetch (how an image gets here),
// images (what is open and served), matrix (how far which node is), tally (where bytes came
// from), members (who is there, by what name), diagnose (which ways are open), report (what
// is said of all that), gossip, swarm, wire and trust.
//
// It never touches containerd, a content store or a disk format of images: a
// host's images come in through Store and Image. It never decides by a clock
// which announcement wins, and decides nothing that a room could decide.
//
// Words: the catalog is what all nodes agree on; the inventory is what this host
// really holds, asked from the Store; holdings are what other nodes say they
// hold, a hint that a swarm verifies chunk by chunk. The three are never mixed.
//
// Invariant: a room is used by others only after all are made, and closed after all who use
// it have ended.
//
// Goroutines: Open starts the transfer server, the converge loop, the sync loop, the pulls,
// the janitor and the health watch in one supervisor. Close cancels its context and waits
// for all of them.
//
// Locks: no lock of this package is held while a room is called, but that of the secrets,
// which is taken before those of credentials and of gossip.
package p2p
