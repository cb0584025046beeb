package registry

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli/clitest"
)

// TestCredentials: they are made once, for their owner alone.
func TestCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	a, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := LoadOrCreate(dir); err != nil || b != a {
		t.Errorf("the second time: %v, %v", b, err)
	}
	other, err := LoadOrCreate(t.TempDir())
	if err != nil || other.Password == a.Password || len(a.Password) < passwordBytes {
		t.Errorf("%+v on another host, %+v here, %v", other, a, err)
	}
	path := filepath.Join(dir, credentialsFile)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, bad := range []string{"", "seeder", "seeder:\n", "seeder:short\n", ":" + a.Password, a.pair() + "\nmore\n", "se\"eder:" + a.Password, strings.Repeat("x", 2000)} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := LoadOrCreate(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%.40q: %+v, %v", bad, c, err)
		}
	}
}

// TestSetup: it prints what each kind of host needs and writes nothing; with --write it makes
// the file and changes none that is there.
func TestSetup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	yaml := "data_dir: " + dir + "\nregistry: {bind: \"127.0.0.1:7953\"}\n"
	setup := func(root, yaml string, args ...string) (stdout, stderr string, err error) {
		t.Helper()
		env := clitest.Env(t, yaml, nil)
		cmd := setupCommand(env, root)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		err = cmd.Execute()
		return env.Stdout.(*bytes.Buffer).String(), env.Stderr.(*bytes.Buffer).String(), err
	}
	if _, _, err := setup(t.TempDir(), "data_dir: "+dir); err == nil || !strings.Contains(err.Error(), "registry.bind is not set") {
		t.Errorf("off: %v", err)
	}
	if _, _, err := setup(t.TempDir(), yaml); err == nil || !strings.Contains(err.Error(), "no credentials yet") {
		t.Errorf("before the first start: %v", err)
	}
	auth, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := setup(t.TempDir(), yaml, "--for", "docker"); err == nil || !strings.Contains(err.Error(), `invalid --for "docker"`) {
		t.Errorf("another kind: %v", err)
	}
	for kind, want := range map[string]struct{ file, line, then string }{
		"k3s":        {"/etc/rancher/k3s/registries.yaml", `      password: "` + auth.Password + `"`, "systemctl restart k3s"},
		"rke2":       {"/etc/rancher/rke2/registries.yaml", `      - "http://127.0.0.1:7953"`, "systemctl restart rke2-server"},
		"containerd": {"/etc/containerd/certs.d/_default/hosts.toml", `    Authorization = "` + auth.header() + `"`, "without a restart"},
	} {
		root := t.TempDir()
		if kind != "containerd" {
			if err := os.MkdirAll(filepath.Join(root, "etc/rancher", kind), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(root, want.file)
		stdout, stderr, err := setup(root, yaml) // auto finds the kind
		if err != nil {
			t.Fatal(err)
		}
		clitest.WantAll(t, stdout, "# "+want.file+"\n", want.line+"\n")
		clitest.WantAll(t, stderr, want.then)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was written without --write: %v", want.file, err)
		}
		if out, _, err := setup(root, yaml, "--write"); err != nil || strings.Contains(out, auth.Password) {
			t.Errorf("--write: %q, %v", out, err)
		}
		wrote, err := os.ReadFile(path)
		if err != nil || "# "+want.file+"\n"+string(wrote) != stdout {
			t.Errorf("%s has %q, %v; want what was printed:\n%s", want.file, wrote, err, stdout)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has the mode %v, %v", want.file, info.Mode(), err)
		}
		if out, _, err := setup(root, yaml, "--for", kind, "--write"); err != nil || !strings.Contains(out, "is as it should be") {
			t.Errorf("--write again: %q, %v", out, err)
		}
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := setup(root, yaml, "--write"); err == nil || !strings.Contains(err.Error(), "was not changed") {
			t.Errorf("--write over a file of others: %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
			t.Errorf("%s was changed to %q, %v", want.file, b, err)
		}
	}
}
