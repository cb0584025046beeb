package kubelet

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// record is one as a kubelet 1.36 writes it, with the mapping given.
func record(id, mapping string) string {
	return `{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2026-11-30T14:00:00Z","imageRef":"` + id + `"` + mapping + "}\n"
}

const (
	everyPod = `{"nodePodsAccessible":true}`
	bySecret = `{"kubernetesSecrets":[{"uid":"u","namespace":"web","name":"regcred","credentialHash":"h"}]}`
)

// TestRecords: the records are read by image ID, and nothing else in that directory.
func TestRecords(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if got, err := Records(root); len(got) > 0 || err != nil {
		t.Errorf("without the directory: %v %v", got, err)
	}
	mapping := `,"credentialMapping":{"k3s-dashboard":` + everyPod + `,"r.example/me/app":` + bySecret + `,"app":` + everyPod + `}`
	write(t, root, Pulled+"/sha256-ab", record("sha256:1", mapping), 0)
	write(t, root, Pulled+"/sha256-cd", record("sha256:2", ""), 0)
	write(t, root, Pulled+"/sha256-ef.tmp", record("sha256:3", ""), 0)
	write(t, root, Pulled+"/sha256-half", record("sha256:4", "")[:60], 0)
	write(t, root, Pulled+"/sha256-intent", `{"kind":"ImagePullIntent","imageRef":"sha256:5"}`, 0)
	write(t, root, Pulled+"/sha256-large", record("sha256:6", `,"x":"`+strings.Repeat("x", maxRecordBytes)+`"`), 0)
	write(t, root, Pulled+"/dir/sha256-ab", record("sha256:7", ""), 0)
	write(t, root, "elsewhere", record("sha256:8", ""), 0)
	if err := os.Symlink(filepath.Join(root, "elsewhere"), filepath.Join(root, Pulled, "sha256-link")); err != nil {
		t.Fatal(err)
	}
	write(t, root, "etc/systemd/system/k3s-agent.service", "", 0)
	got, err := Records(root)
	want := map[string]Record{
		"sha256:1": {ImageID: "sha256:1", Names: []string{"app", "k3s-dashboard"}, Bound: []string{"r.example/me/app"},
			File: "/" + Pulled + "/sha256-ab", Fix: "rm /" + Pulled + "/sha256-ab && systemctl restart k3s-agent"},
		"sha256:2": {ImageID: "sha256:2", File: "/" + Pulled + "/sha256-cd", Fix: "rm /" + Pulled + "/sha256-cd && systemctl restart k3s-agent"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v %v, want %+v", got, err, want)
	}
}

// TestRefuses: the kubelet compares names without tag and digest, letter by letter.
func TestRefuses(t *testing.T) {
	t.Parallel()
	short := Record{Names: []string{"k3s-dashboard"}, Bound: []string{"r.example:5000/b"}, File: "/F", Fix: "rm /F"}
	digest := "@sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		r                 Record
		image, why, helps string
	}{
		{short, "k3s-dashboard", "", ""},
		{short, "k3s-dashboard:v2", "", ""},
		{short, "k3s-dashboard:v2" + digest, "", ""},
		{short, "docker.io/library/k3s-dashboard", "write it as docker.io/library/k3s-dashboard (/F)", "write it as k3s-dashboard in the pod's template, as it was pulled; or `rm /F`"},
		{short, "docker.io/library/k3s-dashboard:v2" + digest, "write it as docker.io/library/k3s-dashboard (/F)", "write it as k3s-dashboard:v2" + digest + " in"},
		{short, "r.example:5000/b:1", "starts it as r.example:5000/b only for pods with the credentials of its pull (/F)", "give the pod the imagePullSecrets or the service account"},
		{Record{Bound: []string{"a", "b", "c", "d"}, File: "/F", Fix: "rm /F"}, "e", "starts it only as a, b, c or 1 more names, for pods with the credentials", "write it so in"},
		{Record{File: "/F", Fix: "rm /F"}, "k3s-dashboard", "starts it for no pod without another pull (/F)", "`rm /F`"},
	} {
		why, helps := c.r.Refuses(c.image)
		if (why == "") != (c.why == "") || !strings.Contains(why, c.why) || !strings.HasPrefix(helps, c.helps) {
			t.Errorf("%s: %q, %q, want %q, %q", c.image, why, helps, c.why, c.helps)
		}
	}
	for _, c := range []struct {
		r    Record
		want string
	}{{short, "only as k3s-dashboard"}, {Record{Bound: []string{"b"}}, "only as b with the credentials of its pull"}, {Record{File: "/F"}, "not at all (/F)"}} {
		if got := c.r.Limits(); got != c.want {
			t.Errorf("limits %q, want %q", got, c.want)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(record("sha256:1", `,"credentialMapping":{"a":`+everyPod+`,"b":`+bySecret+`}`)), "a:1")
	f.Add([]byte(record("sha256:1", "")), "docker.io/library/a@sha256:0")
	f.Add([]byte(`[]`), "")
	f.Fuzz(func(t *testing.T, b []byte, image string) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if r.ImageID == "" {
			t.Fatal("no image ID and no error")
		}
		if why, fix := r.Refuses(image); (why == "") != (fix == "") {
			t.Fatalf("%q without what helps, or the reverse: %q", why, fix)
		}
		if name, rest := split(image); name+rest != image {
			t.Fatalf("%q is cut into %q and %q", image, name, rest)
		}
	})
}
