package main

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// completeTimeout bounds how long a shell waits for names.
const completeTimeout = time.Second

// references are what the daemon knows the names of.
type references struct {
	Announced []string `json:"announced"`
	Local     []string `json:"local"` // in this host's containerd
}

func announcedRefs(r references) []string { return r.Announced }
func localRefs(r references) []string     { return r.Local }

// completion is what cobra asks for the words that may stand at a place.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// completeRefs completes up to most references (0: any number) that the daemon
// knows, none where it does not answer: a shell is no place for errors.
func (a *app) completeRefs(which func(references) []string, most int) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := a.newClient()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var known references
		if err := c.get(ctx, "/v1/references", url.Values{}, &known); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, ref := range which(known) {
			if s := shortRef(ref); s == clean(s) && !slices.Contains(args, s) {
				out = append(out, s)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeWords completes a flag of few values; where files may stand as well the
// shell completes those.
func completeWords(cmd *cobra.Command, flag string, files bool, words ...string) {
	directive := cobra.ShellCompDirectiveNoFileComp
	if files {
		directive = cobra.ShellCompDirectiveDefault
	}
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, directive))
	if err != nil {
		panic(err) // programmer error: there is no such flag
	}
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
