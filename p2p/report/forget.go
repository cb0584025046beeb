package report

import "errors"

// ErrNotForgotten is why a member is not forgotten: it is alive, or not known.
var ErrNotForgotten = errors.New("the member cannot be forgotten")
