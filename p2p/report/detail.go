package report

import "time"

// ImageDetail is what a node knows of an announced image beside its convergence. The
// versions that are kept are those of that node.
type ImageDetail struct {
	// Platforms are those that the image has blobs for, as linux/arm64; none: its blobs
	// are for every platform.
	Platforms []string
	Layers    []Layer // in the order of the image, from the bottom up; none: not known here
	// Kept are the digests of earlier targets that this node still has, the newest first.
	Kept []string
}

// Layer is one layer as it is stored and travels.
type Layer struct {
	Digest    string
	Bytes     int64
	MediaType string
	Platforms []string // who needs it; none: everybody
}

// Traffic is what a node sent to others and received from them of late, on connections for
// transfers, TLS included.
type Traffic struct {
	Slot    time.Duration // that one figure is of
	In, Out []int64       // bytes of each slot, the oldest first; the last is of the slot that is not over
}

// Behind is an announced image that is not ready on this node.
type Behind struct {
	Reference string
	State     State
	Since     time.Time // when it was ready last, or came to be known
}
