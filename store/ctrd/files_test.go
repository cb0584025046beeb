package ctrd

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

// TestCanRead: a content store in which nothing was ever written is where it will be; one
// that another mount namespace has is not here.
func TestCanRead(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for dir, want := range map[string]error{
		root:                           nil,
		filepath.Join(root, "content"): nil, // not made yet
		filepath.Join(root, "containerd", "content"): fs.ErrNotExist,
	} {
		if err := canRead(dir); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", dir, err, want)
		}
	}
}
