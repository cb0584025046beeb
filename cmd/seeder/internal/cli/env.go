// Package cli is what the commands of seeder have in common: their environment, their
// exit codes, and how they read arguments and references and print documents.
//
// It owns the exit codes, the -o flag and the form of a reference that a user types.
// It never talks to the daemon, and knows no command.
//
// Invariant: an error carries its exit code through every layer; one without a code
// is ExitFailed.
package cli

import "io"

// Env is what every command has in common: the streams and the environment of
// the process, and the flags that all of them take.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	Environ        func() []string

	ConfigFile string // --config
	Socket     string // --socket
}
