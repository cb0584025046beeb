package ctrd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What doctor asks of a dialled containerd. None of it writes anything.

const (
	// maxNamespaces bounds how many namespaces are looked into.
	maxNamespaces = 64
	// maxExamined bounds how many images are walked.
	maxExamined = 2000
)

// Namespaces are the names of the images in each namespace, records by digest and
// by image id aside.
func (c *Conn) Namespaces(ctx context.Context) (map[string][]string, error) {
	ctx, cl, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	list, err := cl.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", c.fail(err))
	}
	out := map[string][]string{}
	for _, ns := range list[:min(len(list), maxNamespaces)] {
		imgs, err := cl.ImageService().List(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return nil, fmt.Errorf("list the images of namespace %s: %w", ns, c.fail(err))
		}
		out[ns] = []string{}
		for _, i := range imgs {
			if !strings.HasPrefix(i.Name, "sha256:") && !strings.Contains(i.Name, "@") {
				out[ns] = append(out[ns], i.Name)
			}
		}
		slices.Sort(out[ns])
	}
	return out, nil
}

// CRI is what the kubelet's side of containerd says of itself.
type CRI struct {
	Served   bool   // the socket answers CRI requests
	Disabled bool   // there is no CRI plugin: disabled_plugins, or a containerd without one
	Reason   string // why the plugin is not served or the runtime not ready
	Discards bool   // discard_unpacked_layers: layers are thrown away after a pull; containerd 2.0 to 2.3 do not say
}

// CRI asks whether there is a CRI and how it does.
func (rt *Runtime) CRI(ctx context.Context) (CRI, error) {
	nctx, cl, err := rt.conn.use(ctx)
	if err != nil {
		return CRI{}, err
	}
	var out CRI
	// The plugin is io.containerd.grpc.v1.cri; since containerd 2 that of images,
	// which exports its options, is another one (io.containerd.cri.v1.images).
	plugins, err := cl.IntrospectionService().Plugins(nctx, "id==cri", "id==images")
	if err != nil {
		return CRI{}, fmt.Errorf("list containerd's plugins: %w", rt.conn.fail(err))
	}
	out.Disabled = true
	for _, p := range plugins.GetPlugins() {
		if p.GetID() == "cri" && p.GetType() == "io.containerd.grpc.v1" {
			out.Disabled = false
			out.Reason = p.GetInitErr().GetMessage()
		}
		if p.GetExports()["DiscardUnpackedLayers"] == "true" {
			out.Discards = true
		}
	}
	conn, err := rt.cri(ctx)
	if err != nil || conn == nil {
		return out, err
	}
	st, err := runtime.NewRuntimeServiceClient(conn).Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err = errdefsOf(err); errdefs.IsNotImplemented(err) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("ask CRI for its status: %w", rt.conn.fail(err))
	}
	out.Served = true
	for _, cond := range st.GetStatus().GetConditions() {
		if cond.GetType() == "RuntimeReady" && !cond.GetStatus() {
			out.Reason = strings.TrimSpace(cond.GetReason() + " " + cond.GetMessage())
		}
	}
	var config struct {
		Containerd struct {
			Discards bool `json:"discardUnpackedLayers"`
		} `json:"containerd"`
	}
	if json.Unmarshal([]byte(st.GetInfo()["config"]), &config) == nil && config.Containerd.Discards {
		out.Discards = true
	}
	return out, nil
}

// Lacking is an image that is not complete here.
type Lacking struct {
	Reference    string
	Why          *MissingError
	FromRegistry bool
}

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
