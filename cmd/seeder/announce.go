package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) announceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "announce [REF] [--from SOURCE]",
		Short: "Bring an image of this host to every node",
		Long: `Make an image known to the cluster and wait until every alive node that is meant
to hold it is ready. Ctrl-C stops waiting, not the seeding.

SOURCE is where the image is: auto or containerd (this host's containerd), or a
FILE: a docker-archive or OCI-layout tar, plain or compressed, which is imported
first. REF may be left out where the archive has one image only.

Announcing a new build under the same REF moves every node to it.

With -o json, one object per line: sending, preparing, announced (ref, digest,
version), progress and ready (with "image", a row of ` + "`seeder images -o json`" + `),
and at the end done or error.`,
		Example: `  seeder announce k3s-dashboard:latest
  seeder announce --from k3s-dashboard.tar
  docker save app:v1 -o app.tar && seeder announce app:v1 --from app.tar
  seeder announce app:v1 --timeout 2m -o json`,
		Args: argCount(0, 1, "at most one reference"),
	}
	a.clientFlags(cmd)
	out := outputFlag(cmd)
	from := cmd.Flags().String("from", "auto", "`source` of the image: auto, containerd, or a FILE")
	detach := cmd.Flags().Bool("detach", false, "return once the image is announced, without waiting for the nodes")
	timeout := cmd.Flags().Duration("timeout", defaultWait, "give up waiting after this `time`; 0: never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref := ""
		if len(args) == 1 {
			ref = args[0]
		}
		file, err := announceSource(*from, ref)
		if err != nil {
			return err
		}
		if file != nil {
			defer file.Close()
		}
		c, err := a.newClient()
		if err != nil {
			return err
		}
		f := a.newFollower(*out, *timeout)
		f.announcing = true
		query := url.Values{"wait": {strconv.FormatBool(!*detach)}, "archive": {strconv.FormatBool(file != nil)}}
		if ref != "" {
			query.Set("ref", ref)
		}
		var body io.Reader
		if file != nil {
			if body, err = f.sending(file); err != nil {
				return err
			}
		}
		return f.follow(cmd.Context(), c, http.MethodPost, "/v1/announce", query, body)
	}
	return cmd
}

// announceSource opens the archive that --from names; nil stands for this host's
// containerd. The daemon's sandbox does not see the user's files, so that they
// are opened here.
func announceSource(from, ref string) (*os.File, error) {
	if ref != "" {
		if _, err := normalizeRef(ref); err != nil {
			if _, statErr := os.Stat(ref); statErr == nil {
				return nil, usagef("%s is a file: seeder announce --from %s", ref, ref)
			}
			return nil, err
		}
	}
	switch from {
	case "auto", "containerd":
		if ref == "" {
			return nil, usagef("which image? seeder announce REF, or seeder announce --from FILE")
		}
		return nil, nil
	case "docker":
		return nil, usagef("--from docker is not there yet: docker save %s -o image.tar && seeder announce --from image.tar", orPlaceholder(ref))
	case "-":
		return nil, usagef("--from - (standard input) is not there yet: write the archive to a file and use seeder announce --from FILE")
	}
	f, err := os.Open(from)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, usagef("--from %s: %w; want auto, containerd, or an archive file", from, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file; want a docker-archive or OCI-layout tar file")
	}
	if err == nil && info.Size() == 0 {
		err = errors.New("the file is empty; want a docker-archive or OCI-layout tar file")
	}
	if err != nil {
		f.Close()
		return nil, usagef("--from %s: %w", from, err)
	}
	return f, nil
}

func orPlaceholder(ref string) string {
	if ref == "" {
		return "IMAGE"
	}
	return ref
}

// sending is the archive as the request's body; the view hears how much of it has
// gone.
func (f *follower) sending(file *os.File) (io.Reader, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("size of the archive: %w", err)
	}
	return &countingReader{r: file, total: info.Size(), report: f.event}, nil
}

const reportInterval = 500 * time.Millisecond

type countingReader struct {
	r           io.Reader
	done, total int64 // bytes
	last        time.Time
	report      func(event)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if now := time.Now(); now.Sub(c.last) >= reportInterval || (n > 0 && c.done == c.total) {
		c.last = now
		c.report(event{Event: eventSending, Time: now.UTC(), DoneBytes: c.done, TotalBytes: c.total})
	}
	return n, err
}
