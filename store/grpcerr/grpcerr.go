// Package grpcerr makes errors of gRPC plain for people.
//
// It owns what gRPC puts in front of a cause, and drops it. It never changes what
// errors.Is and errdefs find. Invariant: an error that is not of gRPC stays as it is.
package grpcerr

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// plainError is an error of gRPC as people read it: without its code, its layers and its
// quotes. errors.Is and errdefs find the cause in it.
type plainError struct {
	text  string
	cause error
}

func (e *plainError) Error() string { return e.text }

// Unwrap is the error of gRPC.
func (e *plainError) Unwrap() error { return e.cause }

// Plain makes an error of gRPC plain; others stay as they are.
func Plain(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) || status.Code(err) == codes.DeadlineExceeded {
		return &plainError{"no answer in time", err}
	}
	text := err.Error()
	if !strings.Contains(text, "rpc error: ") && !strings.Contains(text, "transport: ") {
		return err
	}
	return &plainError{plainText(text), err}
}

// closing is the text of grpc.ErrClientConnClosing, which is deprecated without another.
const closing = "grpc: the client connection is closing"

// IsClosed reports whether err is of a connection that this process closed while it was in
// use. gRPC says that with the code of a context that was cancelled.
func IsClosed(err error) bool {
	return err != nil && (errdefs.IsCanceled(err) || status.Code(err) == codes.Canceled) && strings.Contains(err.Error(), closing)
}

var (
	rpcHead  = regexp.MustCompile(`rpc error: code = \w+ desc = `)
	dialHead = regexp.MustCompile(`^.*(connection error: )?(desc = )?"?transport: Error while dialing: (dial unix \S+: )?(connect: )?`)
)

// plainText drops what gRPC puts in front of the cause.
func plainText(s string) string {
	s = strings.TrimSuffix(s, ": unavailable") // which errdefs adds
	s = rpcHead.ReplaceAllString(s, "")
	s = dialHead.ReplaceAllString(s, "")
	return strings.Trim(s, `" `)
}
