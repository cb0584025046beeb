package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/cmd/seeder/internal/term"
	"seeder/store/ctrd"
)

const (
	// containerdTimeout bounds one question to containerd, walkTimeout the look at all
	// images.
	containerdTimeout = 4 * time.Second
	walkTimeout       = 8 * time.Second
	// kubeletNamespace is where CRI, and so the kubelet, has its images.
	kubeletNamespace = "k8s.io"
)

// checkContainerd looks for the socket, and for another one that is meant.
func (e *exam) checkContainerd(ctx context.Context) []finding {
	cfg := e.config(ctx)
	c, err := e.containerd(ctx)
	if errors.Is(err, errEmbedded) {
		return one(finding{Name: "containerd", State: StateSkipped, Detail: err.Error()})
	}
	if err != nil {
		return one(finding{Name: "containerd", State: stateProblem, Detail: err.Error(), Fix: "correct containerd.address or containerd.platform"})
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	address, version, err := c.Conn.Health(ctx)
	f := finding{Name: "containerd", State: StateOK, Subject: address, Detail: "version " + version}
	set := cfg.Containerd.Address != ctrd.Auto
	if err != nil && e.forbidden(address) {
		return one(needsRoot(f.Name, address))
	}
	better := e.otherSocket(address)
	const auto = "remove containerd.address from " + config.DefaultFile + " (auto finds %s), then `systemctl restart seeder`"
	switch {
	case err != nil && set && better != "":
		f.State = stateProblem
		f.Detail = fmt.Sprintf("wrong socket: %s; there is one at %s", socketWhy(address, err), better)
		f.Fix = fmt.Sprintf(auto, better)
	case err != nil:
		f.State, f.Detail = stateProblem, socketWhy(address, err)
		f.Fix = "start it: `systemctl start k3s` or k3s-agent, rke2-server, rke2-agent, containerd; if it listens elsewhere, set containerd.address in " + config.DefaultFile
	case set && better != "" && e.hasK3s(better):
		f.State = stateProblem
		f.Detail = fmt.Sprintf("wrong socket: this one answers, but the kubelet of k3s asks that at %s", better)
		f.Fix = fmt.Sprintf(auto, better)
	}
	return one(f)
}

// otherSocket is the socket of the kubelet's containerd where that is there and is not
// address.
func (e *exam) otherSocket(address string) string {
	s, err := k3s.SocketFinder(e.root)()
	if info, serr := os.Stat(s); err == nil && serr == nil && info.Mode()&os.ModeSocket != 0 && s != address {
		return s
	}
	return ""
}

// hasK3s reports whether a socket that was found is that of a k3s or rke2.
func (e *exam) hasK3s(socket string) bool {
	_, ok := k3s.Find(e.root)
	return ok || socket == filepath.Join(e.root, k3s.Socket)
}

// socketWhy says in short why nobody answers on a socket.
func socketWhy(address string, err error) string {
	info, serr := os.Stat(address)
	switch {
	case address == ctrd.Auto:
		return err.Error()
	case errors.Is(serr, os.ErrNotExist):
		return "the socket does not exist"
	case serr == nil && info.Mode()&os.ModeSocket == 0:
		return "it is not a socket"
	}
	return "containerd does not answer on it: " + err.Error()
}

// forbidden reports whether this user may not open a socket.
func (e *exam) forbidden(address string) bool {
	if address == ctrd.Auto {
		address, _ = k3s.SocketFinder(e.root)()
	}
	return errors.Is(syscall.Access(address, 2), syscall.EACCES) // W_OK
}

// unreachable is a finding for what depends on a containerd that does not answer,
// which checkContainerd has said.
func (e *exam) unreachable(name string, err error) []finding {
	if e.ctrd != nil && e.forbidden(e.ctrd.Conn.Address()) {
		return one(needsRoot(name, ""))
	}
	return one(finding{Name: name, State: StateSkipped, Detail: "containerd cannot be asked: " + firstLine(err.Error())})
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// checkNamespace looks for images that are where the kubelet does not look, as
// `ctr images import` without -n leaves them.
func (e *exam) checkNamespace(ctx context.Context) []finding {
	cfg := e.config(ctx)
	c, err := e.containerd(ctx)
	if err != nil {
		return e.unreachable("namespace", err)
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	all, err := c.Conn.Namespaces(ctx)
	if err != nil {
		return e.unreachable("namespace", err)
	}
	ours := cfg.Containerd.Namespace
	if ours != kubeletNamespace && len(all[kubeletNamespace]) > 0 {
		return one(finding{Name: "namespace", State: stateProblem, Subject: ours,
			Detail: fmt.Sprintf("wrong namespace: containerd.namespace is %s (%d images), the kubelet's images are in %s (%d images)", ours, len(all[ours]), kubeletNamespace, len(all[kubeletNamespace])),
			Fix:    "remove containerd.namespace from " + config.DefaultFile + ", then `systemctl restart seeder`"})
	}
	var out []finding
	for ns, images := range all {
		if ns != ours {
			if f, ok := strayed(c.Conn.Address(), ns, ours, images, all[ours]); ok {
				out = append(out, f)
			}
		}
	}
	slices.SortFunc(out, func(a, b finding) int { return strings.Compare(a.Subject, b.Subject) })
	if len(out) == 0 {
		out = one(finding{Name: "namespace", State: StateOK, Subject: ours, Detail: fmt.Sprintf("%d images", len(all[ours]))})
	}
	return out
}

// strayed is the finding for images of another namespace that ours lacks. Those of
// moby are Docker's, which lets nobody else touch them.
func strayed(address, ns, ours string, images, have []string) (finding, bool) {
	var lost []string
	for _, ref := range images {
		if !slices.Contains(have, ref) {
			lost = append(lost, ref)
		}
	}
	if len(lost) == 0 || ns == "moby" {
		return finding{}, false
	}
	f := finding{Name: "namespace", State: StateWarning, Subject: ns,
		Detail: fmt.Sprintf("%s in it and not in %s, which the kubelet uses: %s", term.Plural(len(lost), "image"), ours, listed(lost, 3)),
		Fix:    moveCommand(address, ns, ours, lost[0])}
	if len(have) == 0 {
		f.State = stateProblem
	}
	return f, true
}

// moveCommand copies an image into our namespace.
func moveCommand(address, from, to, ref string) string {
	ctr := ctrCommand(address)
	return fmt.Sprintf("%s -n %s images export - %s | %s -n %s images import -", ctr, from, ref, ctr, to)
}

// ctrCommand is containerd's own client for a socket.
func ctrCommand(address string) string {
	if strings.HasPrefix(address, "/run/k3s/") {
		return "k3s ctr"
	}
	return "ctr -a " + address
}

// listed names the first of many.
func listed(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// checkCRI looks whether the kubelet can ask this containerd at all.
func (e *exam) checkCRI(ctx context.Context) []finding {
	c, err := e.containerd(ctx)
	if err != nil {
		return e.unreachable("cri", err)
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	cri, err := c.Runtime.CRI(ctx)
	if err != nil {
		return e.unreachable("cri", err)
	}
	f := finding{Name: "cri", State: StateOK, Subject: c.Conn.Address(), Detail: "served"}
	switch {
	case cri.Disabled:
		f.State = stateProblem
		f.Detail = `CRI is off: this containerd has no CRI plugin, so no kubelet can use it; Docker's packages write disabled_plugins = ["cri"]`
		f.Fix = `sed -i '/^ *disabled_plugins/s/"cri",\? *//' /etc/containerd/config.toml && systemctl restart containerd`
		if other := e.otherSocket(c.Conn.Address()); other != "" {
			f.Fix += "; or, if the kubelet uses the containerd at " + other + ", set containerd.address to that"
		}
	case !cri.Served:
		f.State, f.Detail = stateProblem, "the CRI plugin is loaded but not serving: "+cri.Reason
		f.Fix = "`journalctl -u containerd` (or k3s) says why it did not start"
	case cri.Reason != "":
		f.State, f.Detail, f.Fix = stateProblem, "the runtime is not ready: "+cri.Reason, "`journalctl -u containerd` (or k3s) says why"
	}
	return one(f)
}

// maxLacking is how many incomplete images are named.
const maxLacking = 10

// checkLayers looks for images whose blobs are not all there: they run here, but
// cannot be given to another host.
func (e *exam) checkLayers(ctx context.Context) []finding {
	c, err := e.containerd(ctx)
	if err != nil {
		return e.unreachable("layers", err)
	}
	ctx, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	cri, criErr := c.Runtime.CRI(ctx)
	lacking, looked, err := c.Images.Lacking(ctx)
	if err != nil {
		return e.unreachable("layers", err)
	}
	var out []finding
	if criErr == nil && cri.Discards {
		out = append(out, finding{Name: "layers", State: StateWarning, Subject: "discard_unpacked_layers",
			Detail: "containerd discards the layers of pulled images, so they cannot be announced",
			Fix:    "set discard_unpacked_layers = false in containerd's configuration (k3s: its config.toml.tmpl), and restart it; then pull or import those images again"})
	}
	pulled := 0
	for _, l := range lacking {
		if l.FromRegistry {
			pulled++
			continue
		}
		if len(out) <= maxLacking {
			out = append(out, finding{Name: "layers", State: stateProblem, Subject: l.Reference,
				Detail: fmt.Sprintf("%s %s is missing from the content store: no other host can fetch it", l.Why.What, l.Why.Missing.Digest),
				Fix:    fmt.Sprintf("import it again (`k3s ctr images import FILE`), then `seeder announce %s`", cli.ShortRef(l.Reference))})
		}
	}
	if pulled > 0 {
		out = append(out, finding{Name: "layers", State: StateWarning, Subject: fmt.Sprintf("%d of %d images", pulled, looked),
			Detail: "they were pulled from a registry and are not complete here; they run, but cannot be announced",
			Fix:    "`k3s crictl pull IMAGE` for those that are to be announced"})
	}
	if len(out) == 0 {
		out = one(finding{Name: "layers", State: StateOK, Detail: term.Plural(looked, "image") + ", all complete"})
	}
	return out
}
