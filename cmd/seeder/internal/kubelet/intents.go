// Package kubelet reads what the kubelet of this host keeps about images that it pulls.
//
// Kubelets from 1.35 on write down each pull before they begin it and remove the note when
// the pull ends, well or not. One that is ended in between, by a restart or a reboot,
// leaves the note behind, and from then on takes that image for one whose credentials it
// has to check: a pod with imagePullPolicy Never is refused forever, though the image is
// there (KubeletEnsureSecretPulledImages). Waiting, a new pod, and a restart alone do not
// help; removing the note and then restarting the kubelet does.
//
// Of an image that they have pulled they keep a record of the names by which pods may start
// it. A pod that writes another name for the same image is refused in the same way.
//
// It owns these rules. It changes nothing, and knows nothing of announcements.
package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
)

// Pulling is where the kubelet keeps its notes, below the root of the file system.
const Pulling = "var/lib/kubelet/image_manager/pulling"

const (
	// maxIntents bounds the notes that are read: one for each pull under way.
	maxIntents = 256
	// maxIntentBytes bounds a note; one has some 150 bytes.
	maxIntentBytes = 16 << 10
	// patience is how old a note has to be until its pull counts as one that has ended
	// without a word: pulls that end remove theirs.
	patience = 2 * time.Minute
	// rereadAfter is for how long what was read is taken for true.
	rereadAfter = 5 * time.Second
)

// Intent is a note of a pull that did not end.
type Intent struct {
	Reference string // of the image, normalised
	Image     string // as the pod has it
	File      string
	Fix       string // the commands that help, to be run on that host
}

// Intents reads the notes below root that are older than a pull should take. Where there
// is no such directory, as before Kubernetes 1.34, there are none.
func Intents(root string, now time.Time) ([]Intent, error) {
	dir := filepath.Join(root, Pulling)
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's pulls: %w", err)
	}
	defer d.Close()
	entries, err := d.ReadDir(maxIntents)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the kubelet's pulls: %w", err)
	}
	var out []Intent
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || now.Sub(info.ModTime()) < patience {
			continue
		}
		path := filepath.Join(dir, e.Name())
		b, err := readNote(path, maxIntentBytes)
		if err != nil {
			continue // removed since
		}
		image, err := decodeIntent(b)
		if err != nil {
			continue // being written, or of another kind
		}
		ref, err := cli.NormalizeRef(image)
		if err != nil {
			continue
		}
		file := "/" + filepath.Join(Pulling, e.Name())
		out = append(out, Intent{Reference: ref, Image: image, File: file, Fix: forget(root, file)})
	}
	return out, nil
}

// readNote reads a file of the kubelet, the first bytes of a large one.
func readNote(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// forget is how the kubelet forgets a note: it reads them when it starts.
func forget(root, file string) string {
	return "rm " + file + " && systemctl restart " + unit(root)
}

func decodeIntent(b []byte) (image string, err error) {
	var v struct{ Kind, Image string }
	if err := json.Unmarshal(b, &v); err != nil {
		return "", err
	}
	if v.Kind != "ImagePullIntent" || v.Image == "" {
		return "", fmt.Errorf("a %q, want an ImagePullIntent with an image", v.Kind)
	}
	return v.Image, nil
}

// units are the units that run a kubelet, the first that is installed counts.
var units = []string{"k3s", "k3s-agent", "rke2-server", "rke2-agent"}

func unit(root string) string {
	for _, u := range units {
		for _, dir := range []string{"etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"} {
			if _, err := os.Stat(filepath.Join(root, dir, u+".service")); err == nil {
				return u
			}
		}
	}
	return "kubelet"
}

// Watch reads the notes again and again, for a daemon. It is safe for concurrent use.
type Watch struct {
	root string

	mu   sync.Mutex
	at   time.Time
	last map[string]string
}

// NewWatch returns a watch of the host whose files are below root.
func NewWatch(root string) *Watch { return &Watch{root: root} }

// Blocked says of which images, by reference, the kubelet refuses to start a container
// although they are there, and what to do about it.
func (w *Watch) Blocked() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.at) >= rereadAfter {
		w.at, w.last = now, map[string]string{}
		intents, _ := Intents(w.root, now) // what cannot be read cannot be told: doctor says why
		for _, i := range intents {
			w.last[i.Reference] = i.Why() + ": " + i.Fix
		}
	}
	return w.last
}

// Why is what is the matter, as a clause about the image.
func (i Intent) Why() string {
	return fmt.Sprintf("the kubelet refuses it for imagePullPolicy Never, since an earlier pull of %s never ended (%s)", i.Image, i.File)
}
