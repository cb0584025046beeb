package cli

import (
	"errors"
	"fmt"
)

// The exit codes of every command.
const (
	ExitDone         = 0
	ExitFailed       = 1
	ExitUsage        = 2 // invalid usage or configuration
	ExitNotConverged = 3 // not converged within the timeout
	ExitNoDaemon     = 4 // the daemon is not reachable
)

// ExitCode is the exit code that err asks for: ExitDone for nil, ExitFailed where it
// asks for none.
func ExitCode(err error) int {
	var coded *Error
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &coded):
		return coded.Code
	}
	return ExitFailed
}

// Error is an error that asks for an exit code other than ExitFailed.
type Error struct {
	Code int // one of the exit codes
	err  error
}

func (e *Error) Error() string { return e.err.Error() }

func (e *Error) Unwrap() error { return e.err }

// WithCode gives err an exit code; nil stays nil.
func WithCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, err: err}
}

// Usagef is an error of the caller: exit code 2.
func Usagef(format string, args ...any) error {
	return WithCode(ExitUsage, fmt.Errorf(format, args...))
}
