package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/kubelet"
	"seeder/cmd/seeder/internal/pods"
	"seeder/p2p/report"
	transfer "seeder/p2p/wire"
)

// imageFinder knows where the images are that pods wait for.
type imageFinder struct {
	announced map[string]report.ImageState
	members   map[string]bool // alive, by name; nil where no daemon says
	holders   map[string][]string
	byDigest  map[string]string         // names in this host's containerd, by target
	places    map[string]place          // by reference
	host      string                    // the name of this host
	pulled    map[string]kubelet.Record // by reference: what this host's kubelet has pulled itself
}

// place is where this host has an image.
type place struct {
	what string // "is in …", empty: nowhere
	fix  string
}

// engineTimeout bounds a look into Docker and Podman.
const engineTimeout = 2 * time.Second

func (e *exam) newImageFinder(ctx context.Context, waiting []pods.Waiting) *imageFinder {
	f := &imageFinder{announced: map[string]report.ImageState{}, places: map[string]place{}}
	refs := map[string]bool{}
	for _, w := range waiting {
		if ref, err := cli.NormalizeRef(w.Image); err == nil && len(refs) < transfer.MaxHeldRefs {
			refs[ref] = true
		}
	}
	if _, err := e.ask(ctx); err == nil {
		f.askDaemon(ctx, e.client, slices.Sorted(maps.Keys(refs)))
	}
	if records, err := kubelet.Records(e.root); err == nil {
		if c, err := e.containerd(ctx); err == nil {
			f.host, f.pulled = e.config(ctx).NodeName, pulledOf(ctx, c, records, slices.Sorted(maps.Keys(refs)))
		}
	}
	strays := map[string][]string{}
	if c, err := e.containerd(ctx); err == nil {
		if all, err := c.Conn.Namespaces(ctx); err == nil {
			strays = all
		}
	}
	if c, err := e.containerd(ctx); err == nil {
		if have, err := c.Images.List(ctx); err == nil {
			f.byDigest = namesOfDigests(have)
		}
	}
	for ref := range refs {
		if ref = f.named(ref); f.places[ref].what != "" {
			continue
		}
		if _, ok := f.announced[ref]; !ok {
			f.places[ref] = e.placeOf(ctx, ref, strays)
		}
	}
	return f
}

// namesOfDigests are names without a digest in them, the first by the alphabet for each.
func namesOfDigests(have map[string]digest.Digest) map[string]string {
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if d := have[name].String(); !strings.Contains(name, "@") && !strings.HasPrefix(name, "sha256:") && out[d] == "" {
			out[d] = name
		}
	}
	return out
}

func (f *imageFinder) askDaemon(ctx context.Context, c *control.Client, refs []string) {
	var images report.Images
	if c.Get(ctx, "/v1/images", nil, &images) == nil {
		for _, img := range images.Images {
			if img.State == "announced" {
				f.announced[img.Reference] = img
			}
		}
	}
	var members report.Members
	if c.Get(ctx, "/v1/members", nil, &members) == nil {
		f.members = map[string]bool{}
		for _, m := range members.Members {
			if m.State == "alive" {
				f.members[m.Name] = true
			}
		}
	}
	_ = c.Get(ctx, "/v1/holders", url.Values{"ref": refs}, &f.holders) // nobody, where it does not say
}

// placeOf looks on this host: containerd, Docker and Podman, containerd's other
// namespaces.
func (e *exam) placeOf(ctx context.Context, ref string, namespaces map[string][]string) place {
	short := cli.ShortRef(ref)
	announce := "seeder announce " + short
	if c, err := e.containerd(ctx); err == nil {
		if desc, err := c.Images.Resolve(ctx, ref); err == nil {
			if _, err := c.Content.Walk(ctx, desc); errors.Is(err, fs.ErrNotExist) {
				return place{"is in this host's containerd, but not complete", fmt.Sprintf("import it again: `k3s ctr images import FILE && %s`", announce)}
			}
			return place{"is in this host's containerd and not announced", announce}
		}
	} else if errors.Is(err, errEmbedded) {
		var local control.Local
		if e.client.Get(ctx, "/v1/local", url.Values{"ref": {ref}}, &local) == nil {
			return place{"is in this host's store and not announced", announce}
		}
	}
	asking, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if img, err := engines.Find(asking, e.env, ref, engines.FromAuto); err == nil {
		kind := img.Engine.Kind
		img.Engine.Close()
		return place{fmt.Sprintf("is in this host's %s and not announced", engineName(kind)), announce}
	}
	cfg := e.config(ctx)
	for _, ns := range slices.Sorted(maps.Keys(namespaces)) {
		if ns == cfg.Containerd.Namespace || !slices.Contains(namespaces[ns], ref) {
			continue
		}
		c, err := e.containerd(ctx)
		if err != nil {
			continue
		}
		return place{fmt.Sprintf("is in the namespace %s of this host's containerd, which no kubelet uses", ns),
			fmt.Sprintf("%s -n %s images export - %s | seeder announce --from - %s", ctrCommand(c.Conn.Address()), ns, ref, short)}
	}
	return place{}
}

func engineName(kind string) string { return strings.ToUpper(kind[:1]) + kind[1:] }

// fix says where a pod's image is and what makes the pod start.
func (f *imageFinder) fix(w pods.Waiting) (detail, fix string) {
	ref, err := cli.NormalizeRef(w.Image)
	if err != nil {
		return "is not a valid image name", "correct it in the pod's template"
	}
	ref = f.named(ref)
	short := cli.ShortRef(ref)
	detail, fix = f.find(ref, short, w)
	if w.Policy == "Always" {
		detail += "; its imagePullPolicy is Always, which asks a registry even if the host has the image"
		fix = pods.AlwaysFix + fix
	}
	if w.Node != "" && f.members != nil && !f.members[w.Node] {
		detail += fmt.Sprintf("; no member is called %s", w.Node)
		fix += fmt.Sprintf("; and on %s: systemctl enable --now seeder", w.Node)
	}
	return detail, fix
}

// named is the reference that stands for the digest which a pod names, where one is
// announced or in this host's containerd.
func (f *imageFinder) named(ref string) string {
	_, dgst, ok := strings.Cut(ref, "@")
	if !ok {
		return ref
	}
	for _, name := range slices.Sorted(maps.Keys(f.announced)) {
		if f.announced[name].Digest == dgst {
			return name
		}
	}
	if name := f.byDigest[dgst]; name != "" {
		return name
	}
	return ref
}

// refused says why the kubelet of this host does not start a pod with an image that is ready:
// it has pulled that itself, and not for such a pod. Both are empty where that is not so.
func (f *imageFinder) refused(img report.ImageState, w pods.Waiting) (why, fix string) {
	r, ok := f.pulled[w.Reference()]
	if !ok || w.Node != f.host || w.Policy == "Always" || !readyOn(img, w.Node) {
		return "", ""
	}
	return r.Refuses(w.Image)
}

func (f *imageFinder) find(ref, short string, w pods.Waiting) (detail, fix string) {
	if img, ok := f.announced[ref]; ok {
		if why, fix := f.refused(img, w); why != "" {
			return "is announced and ready there, but " + why, fix
		}
		return w.Explain(img, f.host != "" && w.Node == f.host)
	}
	if p := f.places[ref]; p.what != "" {
		return p.what, p.fix
	}
	if names := f.holders[ref]; len(names) > 0 {
		return fmt.Sprintf("is on %s and not announced", listed(names, 3)), fmt.Sprintf("on %s: seeder announce %s", names[0], short)
	}
	if name, _, ok := strings.Cut(ref, "@"); ok {
		return "is on no host that answers under any name", fmt.Sprintf("the pod names it by its digest: on a host that has it, `seeder announce` the name that stands for it (`k3s ctr images ls | grep %s`)", strings.TrimPrefix(ref, name+"@"))
	}
	where := "is on no host that answers"
	if f.members == nil {
		where = "is not on this host"
	}
	return where, fmt.Sprintf("build or import it first: `docker build -t %[1]s . && seeder announce %[1]s`, or `seeder announce --from FILE %[1]s`", short)
}
