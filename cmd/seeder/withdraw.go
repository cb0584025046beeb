package main

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) withdrawCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "withdraw REF",
		Short: "Stop seeding an image",
		Long: `Stop seeding an image: nobody fetches it any more, and the nodes that have it keep
it. With --purge every node removes it, also those that are away now, once they
are back.`,
		Example: "  seeder withdraw k3s-dashboard:latest\n  seeder withdraw --purge k3s-dashboard:latest",
		Args:    argCount(1, 1, "one reference"),
	}
	a.clientFlags(cmd)
	purge := cmd.Flags().Bool("purge", false, "remove the image from every node too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := normalizeRef(args[0])
		if err != nil {
			return err
		}
		c, err := a.newClient()
		if err != nil {
			return err
		}
		query := url.Values{"ref": {ref}, "purge": {strconv.FormatBool(*purge)}}
		if err := c.post(cmd.Context(), "/v1/withdraw", query, nil); err != nil {
			return err
		}
		what := "withdrawn; the nodes that have it keep it"
		if *purge {
			what = "withdrawn; every node removes it"
		}
		_, err = fmt.Fprintf(a.stdout, "%s: %s\n", shortRef(ref), what)
		return err
	}
	return cmd
}
