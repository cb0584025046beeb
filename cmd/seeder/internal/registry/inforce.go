package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
)

// checkTimeout bounds the question to the registry, which is on this host.
const checkTimeout = 3 * time.Second

// InForce says what keeps the containerd of the host below root from asking the registry of
// cfg, and what to do about it; both are empty where nothing does. The error, which may wrap
// fs.ErrPermission, says why that cannot be seen.
func InForce(ctx context.Context, root string, cfg config.Config) (problem, fix string, err error) {
	addr, err := netip.ParseAddrPort(cfg.Registry.Bind)
	if err != nil {
		return "", "", fmt.Errorf("registry.bind %q: %w", cfg.Registry.Bind, err)
	}
	c, err := load(cfg.DataDir)
	if err != nil {
		return "", "", err
	}
	if err := answers(ctx, addr, c); err != nil {
		return err.Error(), "systemctl restart seeder; journalctl -u seeder says why it does not listen there", nil
	}
	return configured(root, addr, c)
}

// answers is why the registry at addr does not answer with the credentials c.
func answers(ctx context.Context, addr netip.AddrPort, c Credentials) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+"/v2/", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", c.header())
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // no proxy
	if err != nil {
		return fmt.Errorf("the registry does not answer: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("what answers at %s is not the registry, or has other credentials: %s", addr, resp.Status)
	}
	return nil
}

// configured looks for the lines of `registry setup`.
func configured(root string, addr netip.AddrPort, c Credentials) (problem, fix string, err error) {
	kind := found(root)
	if kind == "containerd" {
		files, err := filepath.Glob(filepath.Join(root, "etc/containerd/certs.d/*/hosts.toml"))
		if err != nil {
			return "", "", err
		}
		return named(files, "/etc/containerd/certs.d has no hosts.toml", addr, c.header())
	}
	file := filepath.Join(root, "etc/rancher", kind, "registries.yaml")
	problem, fix, err = named([]string{file}, "/etc/rancher/"+kind+"/registries.yaml does not exist", addr, c.Password)
	if problem != "" || err != nil {
		return problem, fix, err
	}
	// What they made of it when they started; with another data directory it cannot be seen.
	made, err := filepath.Glob(filepath.Join(root, "var/lib/rancher", kind, "agent/etc/containerd/certs.d/*/hosts.toml"))
	if err != nil {
		return "", "", err
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/rancher", kind, "agent/etc/containerd")); err != nil {
		return "", "", nil
	}
	problem, _, err = named(made, "it wrote no hosts.toml", addr, "")
	if problem != "" {
		problem = kind + " has not read registries.yaml since it was changed: " + problem
		fix = "systemctl restart " + map[string]string{"k3s": "k3s (k3s-agent on an agent)", "rke2": "rke2-server (rke2-agent on an agent)"}[kind]
	}
	return problem, fix, err
}

// named is the problem where none of files names addr with the secret; none says that there
// are no files.
func named(files []string, none string, addr netip.AddrPort, secret string) (problem, fix string, err error) {
	fix, problem = "seeder registry setup", none
	for _, path := range files {
		b, err := cli.ReadBounded(path, config.MaxFileBytes)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", "", err
		case !strings.Contains(string(b), "http://"+addr.String()):
			problem = path + " does not name http://" + addr.String()
		case !strings.Contains(string(b), secret):
			problem = path + " has other credentials than the registry"
		default:
			return "", "", nil
		}
	}
	return problem, fix, nil
}
