package ui

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// node is a daemon with an embedded store on this machine's loopback.
type node struct {
	name, dir, http, gossip, transfer string
	cmd                               *exec.Cmd
	ended                             bool
}

func (n *node) socket() string { return filepath.Join(n.dir, "api.sock") }

// cluster starts daemons that are ended with the test, and returns when they know each
// other. Each gets no more than a few MiB a second, so that one sees them fetch.
func cluster(t *testing.T, count int) []*node {
	t.Helper()
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(strings.TrimSpace(seeder(t, "secret", "generate"))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var nodes []*node
	for i := range count {
		ports := freePorts(t, 3)
		n := &node{name: fmt.Sprintf("n%d", i+1), dir: filepath.Join(dir, fmt.Sprintf("n%d", i+1)), http: ports[2], gossip: ports[0], transfer: ports[1]}
		join := ""
		if i > 0 {
			join = fmt.Sprintf("%q", nodes[0].transfer)
		}
		if err := os.Mkdir(n.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(n.dir, "seeder.yaml")
		text := fmt.Sprintf(`node_name: %s
data_dir: %s/data
secret_file: %s
gossip: {bind: %q, join: [%s]}
transfer: {bind: %q, download_limit: 2MiB}
containerd: {address: embedded}
images: {min_free: "0%%"}
api: {socket: %s}
http: {bind: %q}
`, n.name, n.dir, secret, n.gossip, join, n.transfer, n.socket(), n.http)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.start(t, config)
		n.answers(t)
		nodes = append(nodes, n)
	}
	return nodes
}

func (n *node) start(t *testing.T, config string) {
	t.Helper()
	log, err := os.Create(filepath.Join(n.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(bin("seeder"), "daemon", "--config", config)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=")
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.end(t)
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(n.dir, "log"))
			t.Logf("log of %s:\n%s", n.name, text)
		}
	})
}

// answers returns when the node's page can be asked for.
func (n *node) answers(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	for {
		conn, err := net.Dial("tcp", n.http)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s does not answer within %s: %v", n.name, patience, err)
		}
	}
}

// end tells the daemon to end, and returns when it has.
func (n *node) end(t *testing.T) {
	t.Helper()
	if n.ended {
		return
	}
	n.ended = true
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("%s: %v", n.name, err)
	}
}

// seeder runs a command and returns what it prints.
func seeder(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(bin("seeder"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("seeder %s: %v: %s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// freePorts are addresses on loopback that nobody has now, below those that the kernel
// takes for outgoing connections.
func freePorts(t *testing.T, count int) []string {
	t.Helper()
	var b [2]byte
	var out []string
	for try := 0; len(out) < count && try < 1000; try++ {
		_, _ = rand.Read(b[:])
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+(int(b[0])<<8|int(b[1]))%12000)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			continue
		}
		u.Close()
		out = append(out, addr)
	}
	if len(out) < count {
		t.Fatal("no free ports")
	}
	return out
}

// archive writes a docker-archive of an image with one layer of random bytes.
func archive(t *testing.T, ref string, layerBytes int) string {
	t.Helper()
	data := make([]byte, layerBytes)
	_, _ = rand.Read(data)
	layer := tarOf(t, map[string][]byte{"data": data})
	sum := sha256.Sum256(layer)
	config := marshal(t, map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	manifest := marshal(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"}}})
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(file, tarOf(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
