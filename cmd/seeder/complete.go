//go:build linux

package main

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
)

// completeTimeout bounds how long a shell waits for names.
const completeTimeout = time.Second

func announcedRefs(r control.References) []string { return r.Announced }
func localRefs(r control.References) []string     { return r.Local }

// completion is what cobra asks for the words that may stand at a place.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// completeRefs completes up to most references (0: any number) that the daemon
// knows, none where it does not answer: a shell is no place for errors.
func completeRefs(env *cli.Env, which func(control.References) []string, most int) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := control.NewClient(env)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var known control.References
		if err := c.Get(ctx, "/v1/references", url.Values{}, &known); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, ref := range which(known) {
			if s := cli.ShortRef(ref); s == term.Clean(s) && !slices.Contains(args, s) {
				out = append(out, s)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
