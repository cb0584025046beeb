package main

import (
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"seeder/p2p"
)

func (a *app) imagesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images [REF]",
		Short: "Show which node has which announced image",
		Long: `Show every announced image against every node. A cell is ready, or says how far
the node is; below the table stands why. With REF: that image alone, node by node.

States: waiting, fetching, importing, ready, failed (tried again), excluded (not
meant to hold it), unreachable. Withdrawn images are in the JSON only.`,
		Example: "  seeder images\n  seeder images k3s-dashboard:latest\n  seeder images -o json | jq -r '.images[] | select(.ready < .total) | .ref'",
		Args:    argCount(0, 1, "at most one reference"),
	}
	a.clientFlags(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.newClient()
		if err != nil {
			return err
		}
		query := url.Values{}
		for _, ref := range args {
			if _, err := normalizeRef(ref); err != nil {
				return err
			}
			query.Add("ref", ref)
		}
		var images p2p.Images
		if err := c.get(cmd.Context(), "/v1/images", query, &images); err != nil {
			return err
		}
		term := a.terminal(a.stdout)
		switch {
		case *out == "json":
			return printJSON(a.stdout, images)
		case len(args) == 1 && len(images.Images) == 1:
			return printImage(a.stdout, term, images.Images[0])
		}
		return printMatrix(a.stdout, term, images)
	}
	return cmd
}

// printImage is one image, node by node.
func printImage(w io.Writer, term terminal, img p2p.ImageState) error {
	if _, err := fmt.Fprintf(w, "%s  %s  %s\nversion %d, %s by %s %s\n", short(img.Reference), clean(img.Digest), size(img.Size),
		img.Version, clean(img.State), clean(img.AnnouncedBy), ago(img.AnnouncedAt)); err != nil {
		return err
	}
	if len(img.Nodes) == 0 {
		return nil
	}
	fmt.Fprintf(w, "ready on %d of %d nodes\n\n", img.Ready, img.Total)
	t := nodeTable(term, img.Nodes)
	return t.print(w)
}

func nodeTable(term terminal, nodes []p2p.NodeState) *table {
	t := &table{term: term}
	t.header("NODE", "STATE", "HAS", "REASON")
	for _, n := range nodes {
		has := cell{fmt.Sprintf("%s of %s", size(n.DoneBytes), size(n.TotalBytes)), ""}
		reason := n.Reason
		if n.State == p2p.Ready {
			has, reason = cell{size(n.TotalBytes), ""}, ""
		}
		t.add(cell{clean(n.Name), ""}, cell{stateText(n), stateColour(n.State)}, has, cell{clean(reason), ""})
	}
	return t
}

// printMatrix is the node × image matrix: a column for each node where the
// terminal has the room, else only how many are ready; then the reasons.
func printMatrix(w io.Writer, term terminal, images p2p.Images) error {
	var rows []p2p.ImageState
	for _, img := range images.Images {
		if img.State != "withdrawn" {
			rows = append(rows, img)
		}
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "nothing is announced; on a host that has the image: seeder announce REF")
		return err
	}
	t := matrixTable(term, rows, true)
	if term.width > 0 && t.width() > term.width {
		t = matrixTable(term, rows, false)
	}
	if err := t.print(w); err != nil {
		return err
	}
	return printReasons(w, term, rows)
}

func matrixTable(term terminal, rows []p2p.ImageState, columns bool) *table {
	t := &table{term: term}
	names := []string{"IMAGE", "DIGEST", "VERSION", "SIZE", "READY"}
	var nodes []string
	if columns {
		nodes = nodeNames(rows)
		for _, n := range nodes {
			names = append(names, clean(n))
		}
	}
	t.header(names...)
	for _, img := range rows {
		ready := cell{fmt.Sprintf("%d/%d", img.Ready, img.Total), green}
		if !converged(img) {
			ready.colour = yellow
		}
		row := []cell{{short(img.Reference), ""}, {shortDigest(clean(img.Digest)), ""},
			{fmt.Sprint(img.Version), ""}, {size(img.Size), ""}, ready}
		byName := map[string]p2p.NodeState{}
		for _, n := range img.Nodes {
			byName[n.Name] = n
		}
		for _, name := range nodes {
			c := cell{"-", faint}
			if n, ok := byName[name]; ok {
				c = cell{stateText(n), stateColour(n.State)}
			}
			row = append(row, c)
		}
		t.add(row...)
	}
	return t
}

// nodeNames are the nodes of all rows, in the order of the first row that has
// them.
func nodeNames(rows []p2p.ImageState) []string {
	var names []string
	seen := map[string]bool{}
	for _, img := range rows {
		for _, n := range img.Nodes {
			if !seen[n.Name] {
				seen[n.Name] = true
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// maxReasons is how many reasons are shown below a matrix.
const maxReasons = 20

// printReasons says why cells are not ready.
func printReasons(w io.Writer, term terminal, rows []p2p.ImageState) error {
	t := &table{term: term}
	more := 0
	for _, img := range rows {
		for _, n := range img.Nodes {
			if n.State == p2p.Ready || n.Reason == "" || n.Reason == string(n.State) {
				continue
			}
			if len(t.rows) == maxReasons {
				more++
				continue
			}
			t.add(cell{clean(n.Name), ""}, cell{short(img.Reference), ""}, cell{stateText(n), stateColour(n.State)}, cell{clean(n.Reason), ""})
		}
	}
	if len(t.rows) > 0 {
		fmt.Fprintln(w)
	}
	if err := t.print(w); err != nil {
		return err
	}
	if more > 0 {
		_, err := fmt.Fprintf(w, "… and %d more: seeder images REF\n", more)
		return err
	}
	return nil
}
