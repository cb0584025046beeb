package archive

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/imageref"
)

// archived is one image or artifact of an archive.
type archived struct {
	ref    string // "" where the archive has no full name for it
	said   string // the name that the archive has for it then; "" where it has none
	why    string // what is wrong with said
	target ocispec.Descriptor
	kind   artifact.Kind
}

// name is what the archive calls it.
func (a archived) name() string {
	switch {
	case a.ref != "":
		return a.ref
	case a.said != "":
		return fmt.Sprintf("%q", imageref.Shortened(a.said))
	}
	return a.target.Digest.String()
}

// unnamed is what can be said of an image without a reference.
func (a archived) unnamed() string {
	if a.said != "" {
		return invalidTag{a.said, a.why}.String()
	}
	return a.target.Digest.String() + ", which has no name"
}

// archiveName sets the full name that an archive gives an image, or what it says
// instead. An OCI layout may name only a tag; that is not a name.
func (a *archived) nameBy(annotations map[string]string) {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		name := annotations[key]
		if name == "" || key == ocispec.AnnotationRefName && !strings.ContainsAny(name, "/:") {
			continue
		}
		named, err := reference.ParseDockerRef(name)
		if err == nil {
			err = imageref.SameDigest(named, a.target.Digest)
		}
		if err == nil {
			a.ref, a.said, a.why = named.String(), "", ""
			return
		}
		a.said, a.why = name, imageref.WhyInvalid(name, err)
	}
}

// callIt is what to type, for an announcement or a push, where an archive does not say what
// its image is called.
const callIt = "name it: REF --from FILE"

// choose picks the images to name, and says what is left out. Artifacts and what
// belongs to other images are never chosen; those without a name of their own that
// belong to an image of the archive are not worth a word.
func choose(found []archived, ref string) (chosen []archived, leftOut []string, err error) {
	imgs, leftOut := split(found)
	if ref != "" {
		chosen, err = chooseOne(imgs, leftOut, ref)
		return chosen, nil, err
	}
	var unnamed []string
	for _, a := range imgs {
		if a.ref == "" {
			unnamed = append(unnamed, a.unnamed())
		} else {
			chosen = append(chosen, a)
		}
	}
	leftOut = append(unnamed, leftOut...)
	switch {
	case len(chosen) > 0:
		return chosen, leftOut, nil
	case len(imgs) == 0:
		return nil, nil, refusef("there is no container image in it, only %s", strings.Join(leftOut, "; "))
	case len(imgs) == 1 && imgs[0].said != "":
		return nil, nil, fmt.Errorf("the archive calls its image %s; %s", unnamed[0], callIt)
	case len(imgs) == 1:
		return nil, nil, fmt.Errorf("the archive has no name for its image; %s", callIt)
	}
	return nil, nil, fmt.Errorf("the archive has %d images and no names, so they cannot be told apart (%s); make an archive of one, and %s", len(imgs), strings.Join(unnamed, "; "), callIt)
}

// split separates images from what is left out of the archive.
func split(found []archived) (imgs []archived, leftOut []string) {
	targets := map[digest.Digest]bool{}
	for _, a := range found {
		targets[a.target.Digest] = true
	}
	for _, a := range found {
		switch {
		case a.kind.Artifact == "":
			imgs = append(imgs, a)
		case a.ref == "" && a.said == "" && targets[a.kind.Of]:
		default:
			leftOut = append(leftOut, a.name()+", "+a.kind.Artifact)
		}
	}
	return imgs, leftOut
}

// chooseOne picks the image that is meant by ref: the one of that name, or the only
// one there is, whatever the archive calls it unless that is another name.
func chooseOne(imgs []archived, leftOut []string, ref string) ([]archived, error) {
	var have []string
	targets := map[digest.Digest]bool{}
	for _, a := range imgs {
		if a.ref == ref {
			return []archived{a}, nil
		}
		if what := a.unnamed(); a.ref == "" && !slices.Contains(have, what) {
			have = append(have, what)
		} else if a.ref != "" {
			have = append(have, a.ref)
		}
		targets[a.target.Digest] = true
	}
	if len(targets) == 1 {
		one := archived{ref: ref, target: imgs[0].target}
		if named, err := reference.ParseDockerRef(ref); err == nil {
			if err := imageref.SameDigest(named, one.target.Digest); err != nil {
				return nil, fmt.Errorf("%s: %w", ref, err)
			}
		}
		return []archived{one}, nil
	}
	if len(imgs) == 0 {
		return nil, refusef("there is no container image in it, only %s", strings.Join(leftOut, "; "))
	}
	return nil, fmt.Errorf("the archive has no image %s; it has %s", ref, strings.Join(append(have, leftOut...), ", "))
}
