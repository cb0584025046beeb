//go:build linux

package main

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/demo"
	"seeder/cmd/seeder/internal/doctor"
	"seeder/cmd/seeder/internal/export"
	"seeder/cmd/seeder/internal/push"
	"seeder/cmd/seeder/internal/registry"
	"seeder/p2p"
)

const examples = `  seeder demo                           # try it on this machine alone
  seeder announce k3s-dashboard:latest  # on the host that has the image
  seeder images                         # which node has what`

func commands(env *cli.Env) []*cobra.Command {
	local := func(most int) cobra.CompletionFunc { return completeRefs(env, localRefs, most) }
	return []*cobra.Command{
		daemonCommand(env), announceCommand(env), push.Command(env), export.Command(env, local), withdrawCommand(env), imagesCommand(env),
		statusCommand(env), membersCommand(env), waitCommand(env), doctor.Command(env), registry.Command(env), reloadCommand(env), secretCommand(env),
		configCommand(env), demo.Command(env), versionCommand(env), completionCommand(env), control.DialStdio(env),
	}
}

// protocol is what nodes speak to each other.
func protocol() string { return p2p.Protocol() }
