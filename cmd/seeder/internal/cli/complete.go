package cli

import "github.com/spf13/cobra"

// CompleteWords completes a flag of few values; where files may stand as well the
// shell completes those.
func CompleteWords(cmd *cobra.Command, flag string, files bool, words ...string) {
	directive := cobra.ShellCompDirectiveNoFileComp
	if files {
		directive = cobra.ShellCompDirectiveDefault
	}
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, directive))
	if err != nil {
		panic(err) // programmer error: there is no such flag
	}
}
