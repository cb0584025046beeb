package artifact

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OnlyManifest is the one container image of an index, for which containerd chooses by
// platform, and a manifest itself. It is an error where there are several.
func OnlyManifest(ctx context.Context, blobs Blobs, target ocispec.Descriptor) (ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		return target, nil
	}
	var found []ocispec.Descriptor
	var look func(d ocispec.Descriptor, depth int) error
	look = func(d ocispec.Descriptor, depth int) error {
		children, err := images.Children(ctx, blobs, d)
		if err != nil {
			return err
		}
		for _, child := range children {
			if ok, err := has(ctx, blobs, child.Digest); err != nil || !ok {
				if err != nil {
					return err
				}
				continue
			}
			if images.IsIndexType(child.MediaType) && depth < MaxIndexDepth {
				if err := look(child, depth+1); err != nil {
					return err
				}
				continue
			}
			k, err := Classify(ctx, blobs, child)
			if err != nil {
				return err
			}
			if k.Artifact == "" {
				found = append(found, child)
			}
		}
		return nil
	}
	if err := look(target, 0); err != nil && !errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("read index %s: %w", target.Digest, blobs.Explain(err))
	}
	if len(found) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("--any-platform is for an image of one platform; %s is an index of %d that are here, and containerd takes the one for its platform", target.Digest, len(found))
	}
	return ocispec.Descriptor{MediaType: found[0].MediaType, Digest: found[0].Digest, Size: found[0].Size}, nil
}

func has(ctx context.Context, blobs Blobs, dgst digest.Digest) (bool, error) {
	if blobs.Fileless(ctx, dgst) {
		return false, nil
	}
	_, err := blobs.Info(ctx, dgst)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// MediaType reads what a manifest or index says that it is.
func MediaType(ctx context.Context, blobs Blobs, desc ocispec.Descriptor) (string, error) {
	if desc.Size > MaxDocBytes {
		return "", fmt.Errorf("%d bytes are too many for a manifest", desc.Size)
	}
	p, err := content.ReadBlob(ctx, blobs, desc)
	if err != nil {
		return "", blobs.Explain(err)
	}
	var doc struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(p, &doc); err != nil {
		return "", err
	}
	switch {
	case images.IsIndexType(doc.MediaType) || images.IsManifestType(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType == "" && doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.MediaType == "" && doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("its media type is %q", doc.MediaType)
}

// Created is when an image was made, as its config for the host's platform says. It is zero
// if the config does not say that, or there is none for that platform.
func Created(ctx context.Context, blobs Blobs, host Host, target ocispec.Descriptor) (time.Time, error) {
	config, err := images.Config(ctx, blobs, target, host.Platform)
	if err != nil {
		return time.Time{}, nil // it is for another platform
	}
	p, err := content.ReadBlob(ctx, blobs, config)
	if err != nil {
		return time.Time{}, fmt.Errorf("read config %s: %w", config.Digest, blobs.Explain(err))
	}
	var doc struct {
		Created time.Time `json:"created"`
	}
	if json.Unmarshal(p, &doc) != nil {
		return time.Time{}, nil
	}
	return doc.Created, nil
}

// IsManifest reports whether a blob of that media type is a manifest of an image.
func IsManifest(mediaType string) bool { return images.IsManifestType(mediaType) }

// Names reports whether a blob of that media type names others: a manifest or an index.
func Names(mediaType string) bool {
	return images.IsManifestType(mediaType) || images.IsIndexType(mediaType)
}

// IsLayer reports whether a blob of that media type is a layer.
func IsLayer(mediaType string) bool {
	return strings.Contains(mediaType, ".layer.") || strings.Contains(mediaType, ".rootfs.")
}
