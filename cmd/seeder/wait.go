package main

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

const defaultWait = 10 * time.Minute

func (a *app) waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait [REF...]",
		Short: "Return when the images are on every node",
		Long: `Return when every alive node that is meant to hold the images has them; without
REF, all announced images. A REF that is not announced yet is waited for as well.
Exit code 3: not within the timeout.

With -o json, one object per line: progress and ready (with "image", a row of
` + "`seeder images -o json`" + `; of ready also "saved", what the nodes measured), and at
the end done or error.`,
		Example: "  seeder wait\n  seeder wait k3s-dashboard:latest --timeout 2m",
		Args:    argCount(0, -1, "references"),
	}
	a.clientFlags(cmd)
	out := outputFlag(cmd)
	timeout := cmd.Flags().Duration("timeout", defaultWait, "give up after this `time`; 0: never")
	cmd.ValidArgsFunction = a.completeRefs(announcedRefs, 0)
	completeWords(cmd, "timeout", false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query := url.Values{}
		for _, arg := range args {
			ref, err := normalizeRef(arg)
			if err != nil {
				return err
			}
			query.Add("ref", ref)
		}
		c, err := a.newClient()
		if err != nil {
			return err
		}
		f := a.newFollower(*out, *timeout)
		return f.follow(cmd.Context(), c, http.MethodGet, "/v1/wait", query, nil)
	}
	return cmd
}
