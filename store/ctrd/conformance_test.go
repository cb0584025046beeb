package ctrd_test

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"go.uber.org/goleak"

	"seeder/store/ctrd"
	"seeder/store/storetest"
)

func TestMain(m *testing.M) {
	// containerd's event exchange cannot be closed; it lives as long as the
	// process that embeds the store.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// TestEmbedded runs the suite on the in-process store; test/hosts runs it on daemons.
func TestEmbedded(t *testing.T) {
	root := t.TempDir()
	store, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	storetest.Run(t, storetest.Subject{
		Open: func(t *testing.T, cfg ctrd.Config) *ctrd.Containerd {
			c, err := store.With(cfg)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		Client: func(c *ctrd.Containerd) *client.Client { return c.Client() },
		Collect: func(t *testing.T) {
			if err := store.Conn.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Blobs: filepath.Join(root, "content", "blobs", "sha256"),
	})
}
