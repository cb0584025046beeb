package export

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
)

// TestOneMakesDeltas: an export that makes deltas waits until another one has made its own; one
// that makes none does not wait.
func TestOneMakesDeltas(t *testing.T) { // not parallel: other exports of this process wait
	ctx, end := context.WithCancelCause(t.Context())
	defer end(nil)
	tired := errors.New("tired of waiting")
	cfg := Config{
		Find: func(_ context.Context, ref string, _ digest.Digest) (string, ocispec.Descriptor, error) {
			return ref, ocispec.Descriptor{Digest: digest.FromString(ref)}, nil
		},
		Walk: func(context.Context, ocispec.Descriptor) ([]artifact.Blob, error) {
			end(tired)
			return nil, nil
		},
	}
	const v1, v2 = "docker.io/library/app:v1", "docker.io/library/app:v2"
	making <- struct{}{}
	if _, err := Prepare(ctx, cfg, Order{Ref: v2}); err != nil {
		t.Error(err)
	}
	for range 20 { // who does not wait has a chance of one half to see the end of ctx first
		if _, err := Prepare(ctx, cfg, Order{Ref: v2, Since: v1}); !errors.Is(err, tired) {
			t.Fatalf("%v, want %v", err, tired)
		}
	}
	<-making
	if _, err := Prepare(t.Context(), cfg, Order{Ref: v2, Since: v1}); err != nil {
		t.Error(err)
	}
	if len(making) != 0 {
		t.Error("it is still held")
	}
}
