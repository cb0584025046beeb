package swarm

import "errors"

// Why a request came to nothing, in one word.
const (
	RefusedBusy    = "busy"    // every upload slot of the peer is taken
	RefusedCrowded = "crowded" // the peer has as many requesters as it takes
	RefusedAbsent  = "absent"  // the peer does not hold it
	RefusedError   = "error"   // no answer, or one that makes no sense
)

// Refusals are all of them.
func Refusals() []string {
	return []string{RefusedBusy, RefusedCrowded, RefusedAbsent, RefusedError}
}

func refusal(err error) string {
	var busy *BusyError
	switch {
	case errors.As(err, &busy):
		return RefusedBusy
	case errors.Is(err, ErrCrowded):
		return RefusedCrowded
	case errors.Is(err, ErrNothing), errors.Is(err, ErrNotHeld):
		return RefusedAbsent
	}
	return RefusedError
}
