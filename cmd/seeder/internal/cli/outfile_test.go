package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestOutFileFails: what cannot be written is named as the user named it, and nothing is left.
func TestOutFileFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "app.tar")
	f, err := CreateFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.File.Close(); err != nil { // as if the disk were gone
		t.Fatal(err)
	}
	_, err = f.Write([]byte("text"))
	if want := "write " + path + ": file already closed"; err == nil || err.Error() != want || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want %q", err, want)
	}
	if err := f.Drop(); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
