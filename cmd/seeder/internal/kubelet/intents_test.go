package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, root, name, content string, age time.Duration) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// TestIntents: a pull that never ended is found with the commands that help, and neither
// one under way nor anything else in that directory.
func TestIntents(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if got, err := Intents(root, time.Now()); len(got) > 0 || err != nil {
		t.Errorf("without the directory: %v %v", got, err)
	}
	const intent = `{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1alpha1","image":"slow:1"}`
	write(t, root, Pulling+"/sha256-6ce5", intent, time.Hour)
	write(t, root, Pulling+"/sha256-new", strings.Replace(intent, "slow:1", "new:1", 1), 0)
	write(t, root, Pulling+"/sha256-half", intent[:40], time.Hour)
	write(t, root, Pulling+"/sha256-record", `{"kind":"ImagePulledRecord","image":"x:1"}`, time.Hour)
	write(t, root, Pulling+"/sha256-name", `{"kind":"ImagePullIntent","image":"no name"}`, time.Hour)
	write(t, root, "etc/systemd/system/k3s-agent.service", "", 0)
	got, err := Intents(root, time.Now())
	want := Intent{Reference: "docker.io/library/slow:1", Image: "slow:1", File: "/" + Pulling + "/sha256-6ce5",
		Fix: "rm /" + Pulling + "/sha256-6ce5 && systemctl restart k3s-agent"}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("found %+v %v, want %+v", got, err, want)
	}
	blocked := NewWatch(root).Blocked()
	if why := blocked["docker.io/library/slow:1"]; len(blocked) != 1 || !strings.Contains(why, "imagePullPolicy Never") || !strings.HasSuffix(why, want.Fix) {
		t.Errorf("blocked: %v", blocked)
	}
}

func FuzzDecodeIntent(f *testing.F) {
	f.Add([]byte(`{"kind":"ImagePullIntent","image":"slow:1"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if image, err := decodeIntent(b); err == nil && image == "" {
			t.Fatal("no image and no error")
		}
	})
}
