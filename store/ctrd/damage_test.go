package ctrd_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// TestDamagedIsTouched: a blob stays damaged while the bytes of its file are the same, also
// when the times of the file change. It is not damaged any more once it is replaced.
func TestDamagedIsTouched(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	c, err := ctrd.Open(ctrd.Config{Address: ctrd.Embedded, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx, release, err := c.Leases.Take(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release(context.Background()) })
	good, bad := []byte("the blob"), []byte("the blog")
	dgst := digest.FromBytes(good)
	if err := c.Content.WriteWhole(ctx, ocispec.Descriptor{Digest: dgst, Size: int64(len(good))}, good, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "content", "blobs", "sha256", dgst.Encoded())
	put := func(p []byte) {
		t.Helper()
		if err := errors.Join(os.Remove(path), os.WriteFile(path, p, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put(bad)
	c.Content.MarkDamaged(dgst, c.Files.Stamp(ctx, dgst))
	for range 2 {
		then := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		if !c.Content.Damaged(ctx, dgst) {
			t.Error("a blob does not count as damaged any more after its file was touched")
		}
	}
	put(good)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if !c.Content.Damaged(ended, dgst) {
		t.Error("a blob that nobody had the time to read does not count as damaged any more")
	}
	if c.Content.Damaged(ctx, dgst) {
		t.Error("a blob that was replaced still counts as damaged")
	}
	put(bad)
	c.Content.MarkDamaged(dgst, c.Files.Stamp(ctx, dgst))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if c.Content.Damaged(ctx, dgst) {
		t.Error("a blob that is gone still counts as damaged")
	}
}
