package ctrd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/internal/text"
	"seeder/store/artifact"
	"seeder/store/imageref"
)

// Images owns the image records: names, targets, labels and pins, and which earlier
// versions are kept.
type Images struct {
	conn    *Conn
	leases  *Leases
	content *Content
	runtime *Runtime

	mu    sync.Mutex
	loose map[string]bool // the names that List found without a pin
}

// List maps image names to targets.
func (im *Images) List(ctx context.Context) (map[string]digest.Digest, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, err
	}
	imgs, err := cl.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", im.conn.fail(err))
	}
	out := make(map[string]digest.Digest, len(imgs))
	unpinned := map[string]bool{}
	for _, i := range imgs {
		out[i.Name] = i.Target.Digest
		if im.conn.cfg.Pin && i.Labels[labelPinned] == "" {
			unpinned[i.Name] = true
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.loose = unpinned
	return out, nil
}

// Resolve returns the target of a reference. The error of an unknown one names
// the nearest that are there and wraps fs.ErrNotExist.
func (im *Images) Resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	img, err := cl.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, im.unknown(ctx, ref)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look up image %s: %w", ref, im.conn.fail(err))
	}
	return img.Target, nil
}

func (im *Images) unknown(ctx context.Context, ref string) error {
	all, err := im.List(ctx)
	if err != nil {
		return err
	}
	var names []string
	for name := range all {
		if !strings.HasPrefix(name, "sha256:") && !strings.Contains(name, "@") {
			names = append(names, name)
		}
	}
	where := fmt.Sprintf("containerd (%s, namespace %s)", im.conn.Address(), im.conn.cfg.Namespace)
	if hint := im.elsewhere(ctx, ref); hint != "" {
		return artifact.Absentf("%s has no image %s; %s", where, ref, hint)
	}
	if len(names) == 0 {
		return artifact.Absentf("%s has no image %s, nor any other; import it first, e.g. k3s ctr images import FILE", where, ref)
	}
	most := max(3, len(ref[strings.LastIndex(ref, "/")+1:])/3) // of what may be a misspelling
	if near := text.Nearest(names, 3, most, func(name string) int { return text.Distance(ref, name) }); len(near) > 0 {
		return artifact.Absentf("%s has no image %s; nearest: %s", where, ref, strings.Join(near, ", "))
	}
	return artifact.Absentf("%s has no image %s", where, ref)
}

// elsewhere says in which other namespace of this containerd an image is, and how it is
// announced from there; empty where it is in none.
func (im *Images) elsewhere(ctx context.Context, ref string) string {
	if im.conn.embedded != nil { // has one namespace
		return ""
	}
	all, err := im.conn.Namespaces(ctx)
	if err != nil {
		return ""
	}
	ctr := "ctr -a " + im.conn.Address()
	if strings.HasPrefix(im.conn.Address(), "/run/k3s/") {
		ctr = "k3s ctr"
	}
	for _, ns := range slices.Sorted(maps.Keys(all)) {
		if ns != im.conn.cfg.Namespace && slices.Contains(all[ns], ref) {
			return fmt.Sprintf("it is in the namespace %[1]s, where no kubelet looks: %[2]s -n %[1]s images export - %[3]s | seeder announce --from - %[3]s", ns, ctr, ref)
		}
	}
	return ""
}

// Named is what a reference stands for in containerd.
type Named struct {
	Target ocispec.Descriptor
	// As is the name that containerd has it under where that is another way to write
	// the reference, for which CRI does not look: short, without its tag, or with
	// index.docker.io. "" where it is the reference itself.
	As string
	// Other is such a name that stands for another build, which is the older one; ""
	// where there is none.
	Other string
}

// ResolveNamed is Resolve that also finds an image under a name for which CRI does not
// look: `ctr images import` takes names as the archive has them. Of two builds under
// ways to write one reference it is the one that was named last.
func (im *Images) ResolveNamed(ctx context.Context, ref string) (Named, error) {
	nctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return Named{}, err
	}
	all, err := cl.ImageService().List(nctx, maybe(ref))
	if err != nil {
		return Named{}, fmt.Errorf("look up image %s: %w", ref, im.conn.fail(err))
	}
	var best, other *images.Image
	for i, img := range all {
		if img.Name != ref && imageref.ForCRI(img.Name) != ref {
			continue
		}
		if best == nil || later(img, *best) && img.Target.Digest != best.Target.Digest || img.Name == ref && img.Target.Digest == best.Target.Digest {
			best, other = &all[i], best
		} else {
			other = &all[i]
		}
	}
	if best == nil {
		return Named{}, im.unknown(nctx, ref)
	}
	out := Named{Target: best.Target}
	if best.Name != ref {
		out.As = best.Name
	}
	if other != nil && other.Target.Digest != best.Target.Digest {
		out.Other = other.Name
	}
	return out, nil
}

// maybe is a filter that every way to write ref passes, and few other names do: all have the
// last part of its repository. To get all images of a host for each of many that are announced
// would take the square of their number.
func maybe(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "name==" + strconv.Quote(ref)
	}
	return "name~=" + strconv.Quote("(^|/)"+regexp.QuoteMeta(path.Base(reference.Path(named)))+"([:@]|$)")
}

func later(a, b images.Image) bool { return a.UpdatedAt.After(b.UpdatedAt) }

// Find returns the descriptor of an image's target that is here, be it named or
// kept. The error of an unknown one wraps fs.ErrNotExist.
func (im *Images) Find(ctx context.Context, target digest.Digest) (ocispec.Descriptor, error) {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	all, err := cl.ImageService().List(ctx, "target.digest=="+target.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look for %s: %w", target, im.conn.fail(err))
	}
	if len(all) > 0 {
		return all[0].Target, nil
	}
	info, err := cl.ContentStore().Info(ctx, target)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, artifact.Absentf("this host has no image %s and does not keep it as an earlier version (images.keep_previous says how many are kept)", target)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look for %s: %w", target, im.conn.fail(err))
	}
	desc := ocispec.Descriptor{Digest: target, Size: info.Size}
	if desc.MediaType, err = artifact.MediaType(ctx, im.content.once(cl), desc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s is in containerd, but is not an image: %w", target, err)
	}
	return desc, nil
}

// Local is an image of this host.
type Local struct {
	Digest  digest.Digest   // of the target
	IDs     []digest.Digest // of target, manifests and configs
	Created time.Time       // as the config for this host's platform says
}

// Local describes what ref stands for. The error of an unknown reference wraps
// fs.ErrNotExist.
func (im *Images) Local(ctx context.Context, ref string) (Local, error) {
	named, err := im.ResolveNamed(ctx, ref)
	if err != nil {
		return Local{}, err
	}
	target := named.Target
	blobs, err := im.content.Walk(ctx, target)
	if err != nil {
		return Local{}, err
	}
	out := Local{Digest: target.Digest}
	for _, b := range blobs {
		if !artifact.IsLayer(b.MediaType) {
			out.IDs = append(out.IDs, b.Digest)
		}
	}
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return Local{}, err
	}
	cs := im.content.once(cl)
	out.Created, err = artifact.Created(ctx, cs, im.conn.host(), target)
	return out, err
}

// Delete removes an image name, and the records that only it needed: that by
// digest, and that by image id. The name itself goes last, so that a call that
// was cut off is finished by the next one.
func (im *Images) Delete(ctx context.Context, ref string) error {
	ctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return err
	}
	is := cl.ImageService()
	img, err := is.Get(ctx, ref)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, im.conn.fail(err))
	}
	all, err := is.List(ctx, "target.digest=="+img.Target.Digest.String())
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, im.conn.fail(err))
	}
	for _, name := range append(onlyFor(ref, all), ref) {
		var opts []images.DeleteOpt
		if name == ref {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := is.Delete(ctx, name, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", name, im.conn.fail(err))
		}
	}
	return im.conn.Collect(ctx)
}

// Remove is Delete that says how many bytes of blobs containerd collected with it.
func (im *Images) Remove(ctx context.Context, ref string) (freedBytes int64, err error) {
	var blobs []Blob
	if target, err := im.Resolve(ctx, ref); err == nil {
		blobs, _ = im.content.Walk(ctx, target) // of one that is not whole nothing is counted
	}
	if err := im.Delete(ctx, ref); err != nil {
		return 0, err
	}
	for _, b := range blobs {
		if _, here, err := im.content.Has(ctx, b.Digest); err == nil && !here {
			freedBytes += b.Size
		}
	}
	return freedBytes, nil
}

// onlyFor names those records of all that ref needs and no other name does.
func onlyFor(ref string, all []images.Image) []string {
	names := make([]string, len(all))
	for k, i := range all {
		names[k] = i.Name
	}
	return imageref.OnlyFor(ref, names)
}

// Lacking is an image that is not complete here.
type Lacking struct {
	Reference    string
	Why          *MissingError
	FromRegistry bool
}

// maxExamined bounds how many images are walked.
const maxExamined = 2000

// Lacking walks the images of the namespace and returns those whose blobs are not
// all here for this host's platform, and how many were looked at.
func (im *Images) Lacking(ctx context.Context) (lacking []Lacking, looked int, err error) {
	nctx, cl, err := im.conn.use(ctx)
	if err != nil {
		return nil, 0, err
	}
	imgs, err := cl.ImageService().List(nctx)
	if err != nil {
		return nil, 0, fmt.Errorf("list images: %w", im.conn.fail(err))
	}
	cs := im.content.once(cl)
	for _, i := range imgs {
		if strings.HasPrefix(i.Name, "sha256:") || strings.Contains(i.Name, "@") {
			continue
		}
		if looked == maxExamined {
			break
		}
		looked++
		_, err := im.content.walk(nctx, cs, i.Target)
		var missing *MissingError
		switch {
		case errors.As(err, &missing):
			from, _ := im.FromRegistry(ctx, i.Name) // unknown counts as made here, which nobody else has
			lacking = append(lacking, Lacking{Reference: i.Name, Why: missing, FromRegistry: from})
		case ctx.Err() != nil:
			return lacking, looked, ctx.Err()
		}
	}
	return lacking, looked, nil
}
