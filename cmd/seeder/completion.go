package main

import (
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
)

func completionCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print a shell completion script",
		Example:   "  seeder completion bash > /etc/bash_completion.d/seeder\n  source <(seeder completion zsh)",
		Args:      cli.ArgCount(1, 1, "one shell: bash, zsh or fish"),
		ValidArgs: []string{"bash", "zsh", "fish"},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		root := cmd.Root()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(env.Stdout, true)
		case "zsh":
			return root.GenZshCompletion(env.Stdout)
		case "fish":
			return root.GenFishCompletion(env.Stdout, true)
		}
		return cli.Usagef("invalid shell %q: want bash, zsh or fish", args[0])
	}
	return cmd
}

// completeNoFiles keeps the shell from completing files as the arguments of commands
// that take none.
func completeNoFiles(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !cmd.HasSubCommands() {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, c := range cmd.Commands() {
		completeNoFiles(c)
	}
}
