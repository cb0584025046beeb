package p2p

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/p2p/catalog"
	"seeder/p2p/trust"
)

// A partition may leave two announcements of one version. The job of the one that
// lost says nothing about the one that won, though it was done.
func TestJobOfTheLoserIsNotTheWinners(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id, err := trust.LoadOrCreateIdentity(filepath.Join(dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	n := New(Config{Name: "n"}, nil)
	if n.catalog, err = catalog.Open(catalog.Config{Path: filepath.Join(dir, "catalog.db")}); err != nil {
		t.Fatal(err)
	}
	defer n.catalog.Close()
	record := func(content string) catalog.Record {
		r, err := catalog.Sign(id, catalog.Announcement{
			Reference: "docker.io/library/a:1", Version: 2, NodeName: "n",
			Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(content), Size: 1},
			Seed:   catalog.Seed{Digest: digest.FromString("seed of " + content), Size: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	loser, winner := record("loser"), record("winner")
	l := &loop{n: n, tasks: map[string]*task{}, running: 1}
	task := &task{}
	l.tasks["docker.io/library/a:1"] = task
	l.supersede(task, loser, loser.Announcement())
	task.cancel = func(error) {}
	l.supersede(task, winner, winner.Announcement())
	l.finish(jobDone{rec: loser})
	if task.ready || n.catalog.Reached(winner) {
		t.Errorf("ready %v, reached %v: want that the winner is still to be obtained", task.ready, n.catalog.Reached(winner))
	}
	if task.cancel != nil {
		t.Error("the job of the loser still runs")
	}
}
