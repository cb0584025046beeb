package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/show"
	"seeder/store/storetest"
)

// TestTooManyImages: more images than one announcement takes are refused before anything is
// sent.
func TestTooManyImages(t *testing.T) {
	t.Parallel()
	img, named := storetest.NewImage(t, "", 1), map[string]*storetest.Image{}
	for i := range 401 {
		named[fmt.Sprintf("docker.io/library/app:v%d", i)] = img
	}
	env := &cli.Env{Stdin: bytes.NewReader(storetest.OCIArchiveOf(t, named)), Stdout: io.Discard, Stderr: io.Discard,
		LookupEnv: func(string) (string, bool) { return "", false }}
	c := control.DialThrough("node1", func(context.Context) (net.Conn, error) {
		return nil, errors.New("something was sent")
	}, func(err error) error { return err })
	defer c.Close()
	f := &flags{}
	_, err := f.upload(t.Context(), env, &tunnel{}, c, show.NewFollower(env, "", time.Minute), t.TempDir(), []source{{from: engines.FromStdin}})
	if cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), "401 images at once, more than 400") {
		t.Error(err)
	}
}
