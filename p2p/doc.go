// Package p2p keeps this node converged with its cluster. For every announced reference this
// host holds what the catalog says, and the node restores that whenever it changes.
//
// The package owns the order in which the parts of a node are opened and closed. It connects
// them (assemble.go), and it owns the transfer port (port.go), the watch over containerd
// (health.go) and the list of events (events.go). The packages below own the rest; the map in
// docs/design.md says what each one does.
//
// It never touches containerd, a content store or a disk format of images: a
// host's images come in through Store and Image. It never decides by a clock
// which announcement wins, and it decides nothing that one of its parts could decide.
//
// Words: the catalog is what all nodes agree on; the inventory is what this host
// really holds, asked from the Store; holdings are what other nodes say they
// hold, a hint that a swarm verifies chunk by chunk. The three are never mixed.
//
// Invariant: a part is used by others only after all parts are made, and it is closed only
// after all that use it have ended.
//
// Goroutines: Open starts the transfer server, the converge loop, the sync loop, the pulls,
// the janitor and the health watch in one supervisor. Close cancels its context and waits
// for all of them.
//
// Locks: no lock of this package is held while a part is called. The one exception is the
// lock of the secrets, which is taken before those of credentials and of gossip.
package p2p
