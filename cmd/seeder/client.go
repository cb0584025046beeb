//go:build !linux

package main

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/push"
)

const examples = `  seeder push me@node1 k3s-dashboard:latest  # to all hosts, through ssh to node1`

// commands are those of a machine on which no daemon runs.
func commands(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{push.Command(env), versionCommand(env), completionCommand(env)}
}

// protocol is none: this program is not a node.
func protocol() string { return "" }
