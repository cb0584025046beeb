package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Pulled is where the kubelet keeps a record of each image that it has pulled, below the
// root of the file system.
const Pulled = "var/lib/kubelet/image_manager/pulled"

const (
	// maxRecords bounds the records that are read: one for each image that the kubelet pulled.
	maxRecords = 1024
	// maxRecordBytes bounds a record. One has some 300 bytes, and 200 for each of at most
	// some 100 secrets of a name.
	maxRecordBytes = 256 << 10
	// maxNames is how many names of a record are said.
	maxNames = 3
)

// Record says which pods the kubelet lets start an image that it has pulled itself. It
// compares the name in a pod letter by letter, without tag and digest: k3s-dashboard is not
// docker.io/library/k3s-dashboard. Other pods it wants to pull the image again, to check
// their credentials.
type Record struct {
	ImageID string // the digest of the config, as CRI has it
	// Names are those by which each pod of the host may start it, sorted.
	Names []string
	// Bound are the names by which only pods with the credentials of a pull may, sorted.
	Bound []string
	File  string
	Fix   string // the commands that make the kubelet forget it, to be run on that host
}

// Records reads the records below root, by image ID. Where there is no such directory, as
// with older kubelets, there are none.
func Records(root string) (map[string]Record, error) {
	dir := filepath.Join(root, Pulled)
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's records: %w", err)
	}
	defer d.Close()
	entries, err := d.ReadDir(maxRecords)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the kubelet's records: %w", err)
	}
	out := map[string]Record{}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasSuffix(e.Name(), ".tmp") { // the kubelet renames it when it is whole
			continue
		}
		b, err := readNote(filepath.Join(dir, e.Name()), maxRecordBytes)
		if err != nil {
			continue // removed since
		}
		r, err := decodeRecord(b)
		if err != nil {
			continue // of another kind
		}
		r.File = "/" + filepath.Join(Pulled, e.Name())
		r.Fix = forget(root, r.File)
		out[r.ImageID] = r
	}
	return out, nil
}

func decodeRecord(b []byte) (Record, error) {
	var v struct {
		Kind, ImageRef    string
		CredentialMapping map[string]struct{ NodePodsAccessible bool }
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return Record{}, err
	}
	if v.Kind != "ImagePulledRecord" || v.ImageRef == "" {
		return Record{}, fmt.Errorf("a %q, want an ImagePulledRecord with an imageRef", v.Kind)
	}
	r := Record{ImageID: v.ImageRef}
	for _, name := range slices.Sorted(maps.Keys(v.CredentialMapping)) {
		if v.CredentialMapping[name].NodePodsAccessible {
			r.Names = append(r.Names, name)
		} else {
			r.Bound = append(r.Bound, name)
		}
	}
	return r, nil
}

// Refuses says why the kubelet does not start the image for a pod that writes it as image,
// as a clause about the image, and what helps. Both are empty where it starts it for every
// pod that writes it so.
func (r Record) Refuses(image string) (why, fix string) {
	name, rest := split(image)
	if slices.Contains(r.Names, name) {
		return "", ""
	}
	const pulled = "the kubelet has pulled that image itself"
	switch {
	case slices.Contains(r.Bound, name):
		return fmt.Sprintf("%s and starts it as %s only for pods with the credentials of its pull (%s)", pulled, name, r.File),
			fmt.Sprintf("give the pod the imagePullSecrets or the service account of the pods that run it; or `%s`", r.Fix)
	case len(r.Names) > 0:
		return fmt.Sprintf("%s and does not start it without another pull for pods that write it as %s (%s)", pulled, name, r.File),
			fmt.Sprintf("write it as %s in the pod's template, as it was pulled; or `%s`", r.Names[0]+rest, r.Fix)
	case len(r.Bound) > 0:
		return fmt.Sprintf("%s and starts it only as %s, for pods with the credentials of its pull (%s)", pulled, some(r.Bound), r.File),
			fmt.Sprintf("write it so in the pod's template, with the imagePullSecrets or the service account of the pods that run it; or `%s`", r.Fix)
	}
	return fmt.Sprintf("%s, was ended before it noted how, and starts it for no pod without another pull (%s)", pulled, r.File), "`" + r.Fix + "`"
}

// Limits says how pods have to write the image for the kubelet to start it, as a clause
// after its name.
func (r Record) Limits() string {
	switch {
	case len(r.Names) > 0:
		return "only as " + some(r.Names)
	case len(r.Bound) > 0:
		return "only as " + some(r.Bound) + " with the credentials of its pull"
	}
	return "not at all (" + r.File + ")"
}

func some(names []string) string {
	if len(names) <= maxNames {
		return strings.Join(names, " or ")
	}
	return fmt.Sprintf("%s or %d more names", strings.Join(names[:maxNames], ", "), len(names)-maxNames)
}

// split cuts a pod's image into its name, as it is written, and its tag and digest.
func split(image string) (name, rest string) {
	ref, err := reference.Parse(image)
	if err != nil {
		return image, ""
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return image, ""
	}
	name = named.Name()
	return name, strings.TrimPrefix(image, name)
}
