//go:build linux

package control

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
)

// NewClient finds the daemon's socket: --socket, else the configuration's.
func NewClient(env *cli.Env) (*Client, error) {
	socket := env.Socket
	if socket == "" {
		cfg, err := config.Load(env, nil)
		if err != nil {
			return nil, err
		}
		socket = cfg.API.Socket
	}
	return Dial(socket), nil
}

// Flags adds the flags of the commands that talk to the daemon.
func Flags(env *cli.Env, cmd *cobra.Command) {
	config.FileFlag(env, cmd)
	cmd.Flags().StringVar(&env.Socket, "socket", "", "the daemon's control `socket` (default: api.socket of the configuration)")
}
