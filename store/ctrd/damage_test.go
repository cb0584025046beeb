package ctrd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/store/ctrd"
)

// TestDamagedEmbeddedStore: its metadata is the one thing that nobody else has, so
// that damage is told with the file and the fix, and nothing is removed.
func TestDamagedEmbeddedStore(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	open := func() error {
		c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: root})
		if err == nil {
			err = c.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "meta.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty": nil, "half": whole[:len(whole)/4], "zeros": make([]byte, len(whole)),
		"garbage": bytes.Repeat([]byte("garbage "), 5000),
		"pages":   append(bytes.Clone(whole[:8192]), bytes.Repeat([]byte{0xa5}, len(whole)-8192)...),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := open()
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove "+root) {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
			t.Errorf("%s: the file was changed, %v", name, err)
		}
	}
}
