// Package k3stest makes the files of a host with k3s for tests.
package k3stest

import (
	"os"
	"path/filepath"
	"testing"
)

// TokenPassword and OtherPassword are passwords of tokens.
const (
	TokenPassword = "0123456789abcdef0123456789abcdef"
	OtherPassword = "fedcba9876543210fedcba9876543210"
)

// HostWith is the root of a host with these files.
func HostWith(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	ServerUnit = "/etc/systemd/system/k3s.service"
	AgentUnit  = "/etc/systemd/system/k3s-agent.service"
	ServerRuns = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n"
	AgentRuns  = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n"
)
