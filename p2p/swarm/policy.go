package swarm

import (
	"time"

	"seeder/internal/wait"
	"seeder/store/chunk"
)

// The numbers of the scheduler. "Simulated" is the simulation of the design at
// N = 1,000 nodes and 256 chunks, as a multiple of the optimum K + ⌈log2 N⌉ − 1
// chunk times (Mundinger, Weber, Weiss 2008); base 1.068.
const (
	// maxNeighbours: simulated degree 8 1.41, 12 1.18, 16 1.13, 24 1.08, 64 1.07.
	maxNeighbours = 32
	// enoughNeighbours is where a fetch stops to look for more in a hurry.
	enoughNeighbours = 24
	// maxRequests in flight: the design's simulation, with one upload at a time, has
	// 2 1.23, 3 1.08, 4 1.07, 8 1.09, 16 1.10. With two at a time, which real links
	// need, this engine at N = 160 has 3 1.22, 4 1.12, 5 1.08, 6 1.08.
	maxRequests = 5
	// minRequests in flight there are however little memory is left.
	minRequests = 2
	// farRequests bounds what is added to that where peers are far away (inFlightFor).
	farRequests = 12
	// maxPerPeer is how many of them one peer gets where there are fewer useful
	// peers than requests: one on its way, one behind it, one asked for. It grows
	// with the requests in flight.
	maxPerPeer = 3
	// stuckAfter × the median is when a request does not count as in flight any more,
	// up to maxStuck of them: it waits for a slow peer. (Simulated at N = 64 with a
	// tenth of the uplinks at a tenth of the rate, means of five: 1.24 without, after
	// 2 1.19, 3 1.21, 4 1.19.)
	stuckAfter = 4
	maxStuck   = 4
	// maxOpen bounds the requests that have not ended, overdue ones included, and
	// with them the buffers. It is farRequests + maxStuck.
	maxOpen = 16
	// maxVerifying bounds the chunks that have come and are being verified: when
	// the disk is slower than the link nothing more is asked for.
	maxVerifying = 4
	// endgameChunks: the last few may be asked of two peers (simulated with 5 % of
	// nodes at a tenth of the rate: 1.27 without, 1.23 with).
	endgameChunks = 4
	// minDeadline: a chunk that takes longer than this and 4 × the median is also
	// asked for elsewhere.
	minDeadline = time.Second
	// hardRate, with hardFloor, is when a request is given up altogether. It is
	// far below any useful link, since a slow only holder is better than none.
	hardFloor       = 30 * time.Second
	hardBytesPerSec = 8 << 10
	// maxClasses is over how many complete peers the new chunks are divided.
	maxClasses = 4
	// SmallBytes is how little a fetch may miss to do without have streams at first: each
	// is a connection with a handshake of its own, 2.5 ms of CPU on both ends and 3 kB
	// (measured), to each of its peers. It asks those that are complete alone, for
	// smallPatience.
	SmallBytes    = 64 << 10
	smallPatience = 250 * time.Millisecond
	// maxStrikes failures in a row make a peer no neighbour for a while.
	maxStrikes = 3
)

// deadline is after what time a chunk is asked for elsewhere too: max(1 s, 4 ×
// the median of the last chunks).
func deadline(median time.Duration) time.Duration { return max(minDeadline, 4*median) }

// hardDeadline is after what time a request for bytes is given up.
func hardDeadline(bytes int64) time.Duration {
	return hardFloor + time.Duration(bytes)*time.Second/hardBytesPerSec
}

// backoff is the pause before a peer that failed strikes times in a row is tried
// again: 100 ms doubling to 10 s.
func backoff(strikes int) time.Duration {
	return wait.Doubled(100*time.Millisecond, 10*time.Second, strikes-1)
}

// finding is the pause before the finder is asked again, after asked questions in
// all and dry ones since there was a useful neighbour: quickly at first (a new or
// returning node starts within a second, and those who join at once must learn of
// each other), then every few seconds. A fetch with neighbours enough only renews
// its place at the owners, who forget after 60 s.
func finding(asked, dry, neighbours int, useful bool) time.Duration {
	switch {
	case !useful:
		return wait.Doubled(100*time.Millisecond, 3*time.Second, dry)
	case neighbours < enoughNeighbours:
		return wait.Doubled(500*time.Millisecond, 5*time.Second, asked)
	}
	return 20 * time.Second
}

// inFlightFor is how many requests are in flight where a message to a peer and
// back takes trip and a chunk comes every gap. Each chunk costs about four trips,
// since most requests are answered with "come again later". (Simulated at N = 64, 8 ms a chunk:
// trips of 1 ms 1.05 with and without, 10 ms 1.10 and 1.11, 50 ms 1.28 and 1.84,
// 0.2 to 50 ms 1.14 and 1.50 × the optimum, which knows no trips. trip is the
// median of the last ones: on real links words queue behind chunks, and with the
// shortest 16 hosts at 50 Mbit/s took 1.22, with the median 1.17.)
func inFlightFor(trip, gap time.Duration) int {
	if gap <= 0 {
		return maxRequests
	}
	return maxRequests + int(min(4*trip/gap, farRequests-maxRequests))
}

// inFlightAlone is how many requests are in flight where nobody refuses any: those
// that fill the link while a message goes there and back, which takes trip, by
// Little's law. took is the shortest time from request to reply, so that what is
// beyond trip is the chunk's own; it grows as soon as chunks queue, and keeps
// their number down. (Simulated with two nodes, 8 ms a chunk, trips of 10 ms
// 1.02 and 50 ms 1.19 × the optimum, without it 1.02 and 2.48. Asking for more until
// it is refused: 1.31 at 10 ms.)
func inFlightAlone(trip, took time.Duration) int {
	own := max(took-trip, minSleep)
	return maxRequests + int(min(trip/own, farRequests-maxRequests))
}

// perPeer is how many of requests one peer gets: one where there are peers enough
// (simulated), more where a small cluster would leave its links idle.
func perPeer(useful, requests int) int {
	return min(max((requests+useful-1)/max(useful, 1), 1), maxPerPeer+requests-maxRequests)
}

// rarest is rarest-first (Legout 2006: near-ideal diversity): of the chunks in
// both free and have the one with the fewest copies, ties by lowest offset, so
// that in file order the prefix grows. -1: there is none. (Simulated: random
// ties 1.08, strictly in order 1.10.)
func rarest(free, have chunk.Bitmap, copies []uint16) int {
	best := -1
	free.Both(have, func(n int) bool {
		if best < 0 || copies[n] < copies[best] {
			best = n
		}
		return copies[best] > 0
	})
	return best
}

// classOf is the share of set that complete peer rank of k is asked to choose
// from, so that two super-seeds do not hand out the same chunk. Every receiver
// ranks them by name and so divides alike.
func classOf(set chunk.Bitmap, rank, k int) chunk.Bitmap {
	if k <= 1 {
		return set.Clone()
	}
	out := make(chunk.Bitmap, len(set))
	set.Both(set, func(n int) bool {
		if n%k == rank%k {
			out.Set(n)
		}
		return true
	})
	return out
}

// endgame reports whether duplicates are in order: nothing is left to ask for
// that is not under way, and few chunks are missing.
func endgame(free, missing int) bool { return free == 0 && missing > 0 && missing <= endgameChunks }
