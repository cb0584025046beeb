// Package p2p keeps this node converged with its cluster: what the catalog says
// is what this host holds, for every announced reference, for ever.
//
// It owns the exchange of the catalog with other nodes (sync.go), the images
// that are open for fetching and serving (swarms.go), finding peers (finder.go)
// and the node × image matrix (matrix.go). Its rooms below own the parts: converge (what this host does about each
// announcement), report (what is said of it), gossip (who is there), catalog
// (what shall be), swarm (which chunk from whom), wire (how bytes travel), trust
// (who may).
//
// It never touches containerd, a content store or a disk format of images: a
// host's images come in through Store and Image. It never decides by a clock
// which announcement wins.
//
// Words: the catalog is what all nodes agree on; the inventory is what this host
// really holds, asked from the Store; holdings are what other nodes say they
// hold, a hint that a swarm verifies chunk by chunk. The three are never mixed.
//
// Invariant: what this node says of an announcement is about that very record; who works
// on an earlier one may speak late, and is not heard.
//
// Goroutines: Open starts the transfer server, the converge loop, the sync loop,
// the janitor and the health watch in one group. Close cancels the group's
// context and waits for all of them.
package p2p
