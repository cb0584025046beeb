// Package artifact reads the documents of an image: which blobs it has, for which
// platforms, and what of it is missing. It tells container images from what else has a
// manifest: charts, files, signatures, attestations.
//
// It owns the media types that tell them apart, the order of the blobs of an image, and
// how large a document may be. It writes nothing. Invariant: what has missing blobs passes
// for an image, so that its reader says what is missing.
package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is what a manifest or index stands for.
type Kind struct {
	Artifact string        // "" for a container image, else what it is, with an article
	Of       digest.Digest // what it belongs to, as a signature to its image; "" where it says nothing
}

// subjectAnnotation is how engines with containerd's store say to which manifest an
// attestation belongs that they save without the index.
const subjectAnnotation = "io.containerd.manifest.subject"

// wasmConfig is the config of a module that containerd's runwasi shims run. containerd
// takes it for an image without layers to unpack.
const wasmConfig = "application/vnd.wasm.config.v0+json"

// artifactKinds are what artifacts are called, by how a media type of theirs begins.
var artifactKinds = []struct{ mediaType, name string }{
	{"application/vnd.cncf.helm.", "a Helm chart"},
	{"application/vnd.dev.cosign.simplesigning.", "a signature"},
	{"application/vnd.dev.cosign.artifact.sig", "a signature"},
	{"application/vnd.dev.sigstore.bundle", "a signature"},
	{"application/vnd.cncf.notary.signature", "a signature"},
	{"application/vnd.in-toto+json", "an attestation"},
	{"application/vnd.dsse.envelope", "an attestation"},
	{"application/spdx+json", "an SBOM"},
	{"application/vnd.cyclonedx", "an SBOM"},
	{"text/spdx", "an SBOM"},
	{"application/vnd.content.hauler.file", "a file"},
	{"application/vnd.hauler.cattle.io.", "a file"},
	{"application/vnd.amazon.soci.index", "a SOCI index"},
}

// manifestDoc is what tells a container image from an artifact.
type manifestDoc struct {
	ArtifactType string               `json:"artifactType"`
	Config       ocispec.Descriptor   `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
}

// Classify says what desc is, which may lack blobs: then it passes for an image, and
// Walk says what is missing.
func Classify(ctx context.Context, cs content.Provider, desc ocispec.Descriptor) (Kind, error) {
	return classifyAt(ctx, cs, desc, 0)
}

func classifyAt(ctx context.Context, cs content.Provider, desc ocispec.Descriptor, depth int) (Kind, error) {
	k := Kind{Of: digest.Digest(desc.Annotations[subjectAnnotation])}
	if k.Of == "" {
		k.Of = digest.Digest(desc.Annotations["vnd.docker.reference.digest"])
	}
	if IsAttestation(desc) {
		k.Artifact = "an attestation"
		return k, nil
	}
	if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		k.Artifact = unknownType(desc.MediaType)
		return k, nil
	}
	if desc.Size > MaxDocBytes {
		return k, nil // Walk refuses it
	}
	p, err := content.ReadBlob(ctx, cs, desc)
	if errdefs.IsNotFound(err) {
		return k, nil
	}
	if err != nil {
		return k, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	var doc manifestDoc
	if json.Unmarshal(p, &doc) != nil {
		return k, nil // Walk says so
	}
	if doc.Subject != nil && k.Of == "" {
		k.Of = doc.Subject.Digest
	}
	if images.IsIndexType(desc.MediaType) {
		k.Artifact, err = indexKind(ctx, cs, doc, depth)
		return k, err
	}
	k.Artifact, err = manifestKind(ctx, cs, doc)
	return k, err
}

// indexKind is an artifact where all that is here of the index is.
func indexKind(ctx context.Context, cs content.Provider, doc manifestDoc, depth int) (string, error) {
	artifact := ""
	for _, child := range doc.Manifests {
		if depth == MaxIndexDepth {
			return "", nil
		}
		k, err := classifyAt(ctx, cs, child, depth+1)
		if err != nil || k.Artifact == "" {
			return "", err
		}
		if artifact == "" || artifact == "an attestation" {
			artifact = k.Artifact
		}
	}
	return artifact, nil
}

// manifestKind goes by the config's type, as containerd does: what has another one it
// stores and does not unpack. cosign's signatures have the config of an image; their
// layers tell.
func manifestKind(ctx context.Context, cs content.Provider, doc manifestDoc) (string, error) {
	switch {
	case doc.Config.MediaType == wasmConfig:
		return "", nil
	case !images.IsConfigType(doc.Config.MediaType):
		types := []string{doc.Config.MediaType, doc.ArtifactType}
		for _, l := range doc.Layers {
			types = append(types, l.MediaType)
		}
		if name := artifactName(types...); name != "" {
			return fmt.Sprintf("%s (config %s)", name, doc.Config.MediaType), nil
		}
		if doc.ArtifactType != "" {
			return "an artifact of type " + doc.ArtifactType, nil
		}
		return "an artifact (config " + doc.Config.MediaType + ")", nil
	}
	for _, l := range doc.Layers {
		if images.IsLayerType(l.MediaType) {
			return "", nil
		}
	}
	if len(doc.Layers) == 0 {
		return "", nil
	}
	if p, err := images.ConfigPlatform(ctx, cs, doc.Config); err == nil && p.OS == "unknown" {
		return "an attestation", nil
	}
	if name := artifactName(doc.Layers[0].MediaType, doc.ArtifactType); name != "" {
		return name, nil
	}
	return "an artifact (layers " + doc.Layers[0].MediaType + ")", nil
}

func artifactName(mediaTypes ...string) string {
	for _, t := range mediaTypes {
		for _, k := range artifactKinds {
			if strings.HasPrefix(t, k.mediaType) {
				return k.name
			}
		}
	}
	return ""
}

// unknownType is what is said of something whose type containerd does not run.
func unknownType(mediaType string) string {
	switch {
	case strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1"):
		return "an image of Docker's schema 1, which containerd does not run: pull and save it with a current Docker or skopeo"
	case strings.HasPrefix(mediaType, "application/vnd.oci.artifact.manifest."):
		return "an artifact (" + mediaType + ")"
	case mediaType == "":
		return "something without a media type"
	}
	return "something of the type " + mediaType
}

// IsAttestation recognises BuildKit's provenance and SBOM manifests, which belong
// to no platform and run nowhere.
func IsAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		(d.Platform != nil && d.Platform.OS == "unknown")
}

// MaxIndexDepth bounds indexes within indexes.
const MaxIndexDepth = 4

// MaxDocBytes bounds manifests, indexes and configs, which are read into memory;
// registries take at most 4 MiB.
const MaxDocBytes = 8 << 20

// MaxDocValues bounds the values of a JSON document: each may take some hundred bytes of
// memory once it is decoded, and two bytes as text. The largest index, of 10,000 manifests,
// has 60,000.
const MaxDocValues = 100_000

// Values counts the values of the JSON documents that are written to it: their commas, of
// which there is at least one for each but the first of a list. It implements io.Writer.
type Values int

// Write never fails.
func (v *Values) Write(p []byte) (int, error) {
	*v += Values(bytes.Count(p, []byte(",")))
	return len(p), nil
}

// Check is an error where the document called name has too many to be decoded.
func (v Values) Check(name string) error {
	if v > MaxDocValues {
		return fmt.Errorf("%s has more than %d values", name, MaxDocValues)
	}
	return nil
}

// CheckDocument is an error where a manifest, index or config has too many bytes to be read
// into memory. What a descriptor says of its size may be a lie: bytes is the blob's own.
func CheckDocument(d digest.Digest, bytes int64) error {
	if bytes > MaxDocBytes {
		return fmt.Errorf("the manifest, index or config %s has %d bytes, at most %d", d, bytes, MaxDocBytes)
	}
	return nil
}
