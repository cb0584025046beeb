package push

import (
	"errors"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
)

// TestLostLink: where ssh hangs and is killed, what was wrong with the connection is said, and
// not how ssh ended.
func TestLostLink(t *testing.T) {
	t.Parallel()
	w := way{ssh: []string{"sh", "-c", "exec sleep 60"}, host: "me@node1", seeder: "seeder"}
	tun, err := open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	tun.close()
	err = tun.lost(errors.New("nothing came for a minute"))
	if cli.ExitCode(err) != cli.ExitNoDaemon || !strings.Contains(err.Error(), "me@node1 through ssh: nothing came for a minute") {
		t.Error(err)
	}
}
