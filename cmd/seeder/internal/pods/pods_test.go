package pods

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/pods/podstest"
	"seeder/p2p/report"
)

func TestTail(t *testing.T) {
	t.Parallel()
	var tl tail
	for i := range 10_000 {
		fmt.Fprintf(&tl, "line %d\n", i)
	}
	if tl.Len() != maxTailBytes || tl.Cap() > 64<<10 || lastLine(tl.String()) != "line 9999" {
		t.Errorf("%d bytes in %d, the last line is %q", tl.Len(), tl.Cap(), lastLine(tl.String()))
	}
	if n, err := tl.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil || tl.Len() != maxTailBytes {
		t.Errorf("%d %v, %d bytes", n, err, tl.Len())
	}
}

// FuzzDecode: whatever a cluster answers, it is a list of pods or an error.
func FuzzDecode(f *testing.F) {
	f.Add(`{"apiVersion":"v1","items":[` + podstest.Pod("a", "b", "c", "Never", "ErrImagePull") + `],"kind":"List"}`)
	f.Add(`{"items":[{]}`)
	f.Add(`{"items":{}}`)
	f.Add(`{"items":[]}}`)
	f.Add(`{"items":[]}{"items":[]}`)
	f.Fuzz(func(t *testing.T, text string) {
		n := 0
		err := decode(strings.NewReader(text), func(p pod) { n += len(p.waiting()) })
		if err == nil && !json.Valid([]byte(text)) {
			t.Fatalf("%d pods in %q", n, text)
		}
	})
}

// TestWatch: the daemon finds the pods that wait with the kubeconfig of this host, asks at
// most once in a while, and says why where it cannot.
func TestWatch(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if f := NewWatch(root).Waiting(t.Context()); f.Asked || !strings.Contains(f.Why, "no kubeconfig") {
		t.Errorf("without a kubeconfig: %+v", f)
	}
	kubeconfig, asked := podstest.Server(t, podstest.Pod("web-1", "h2", "app:v1", "Never", "ErrImageNeverPull"), podstest.Pod("slow-1", "h3", "slow:v1", "Always", "ContainerCreating"))
	b, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(root, Kubeconfigs[0])
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(own, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(string(b))
	w := NewWatch(root)
	want := Waiting{Namespace: "web", Name: "web-1", Node: "h2", Image: "app:v1", Policy: "Never", Reason: "ErrImageNeverPull"}
	for range 3 {
		if f := w.Waiting(t.Context()); !f.Asked || f.Why != "" || len(f.List) != 1 || f.List[0] != want {
			t.Errorf("%+v", f)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times at one moment", n)
	}
	// As k3s writes it: the certificate is in the file.
	named := regexp.MustCompile(`certificate-authority: "(.*)"`).FindStringSubmatch(string(b))
	ca, err := os.ReadFile(named[1])
	if err != nil {
		t.Fatal(err)
	}
	write(strings.Replace(string(b), named[0], "certificate-authority-data: "+base64.StdEncoding.EncodeToString(ca), 1))
	if f := NewWatch(root).Waiting(t.Context()); f.Why != "" || len(f.List) != 1 {
		t.Errorf("with the certificate in the file: %+v", f)
	}
	for what, c := range map[string][2]string{
		"another token":    {strings.Replace(string(b), "sesame", "wrong", 1), "401"},
		"no credentials":   {strings.Replace(string(b), "token: sesame", "exec: {command: aws}", 1), "no certificate and no token"},
		"no TLS":           {strings.Replace(string(b), "https://", "http://", 1), "want an https address"},
		"another context":  {strings.Replace(string(b), "current-context: x", "current-context: y", 1), "no certificate and no token"},
		"not a kubeconfig": {"\t", "invalid kubeconfig"},
	} {
		write(c[0])
		if f := NewWatch(root).Waiting(t.Context()); len(f.List) > 0 || !strings.Contains(f.Why, c[1]) {
			t.Errorf("%s: %+v", what, f)
		}
	}
}

// TestExplain: a pod is matched to what is announced by its name or its digest, and told what
// makes it start.
func TestExplain(t *testing.T) {
	t.Parallel()
	rows := []report.ImageState{{Reference: "docker.io/library/app:v1", Digest: "sha256:" + strings.Repeat("a", 64), State: "announced",
		Nodes: []report.NodeState{{Name: "h1", State: report.Ready}, {Name: "h2", State: report.Failed, Reason: "full"}}}}
	for _, c := range []struct{ image, node, detail string }{
		{"app:v1", "h1", "ready there"}, {"app@sha256:" + strings.Repeat("a", 64), "h2", "failed there: full"}, {"app:v1", "", "is announced"}, {"app:v2", "h1", ""}, {"UPPER", "h1", ""},
	} {
		w := Waiting{Image: c.image, Node: c.node}
		row, ok := w.Row(rows)
		if ok != (c.detail != "") {
			t.Errorf("%s: %v", c.image, ok)
			continue
		}
		if detail, fix := w.Explain(row, false); ok && (!strings.Contains(detail, c.detail) || fix == "") {
			t.Errorf("%s on %s: %q %q", c.image, c.node, detail, fix)
		}
	}
}
