package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/internal/disk"
)

// Command is `seeder registry`.
func Command(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "registry",
		Short:   "Have containerd ask this host's registry of announced images",
		Example: "  seeder registry setup",
		Args:    cli.NoSuchCommand,
		RunE:    cli.NeedSubcommand,
	}
	cmd.AddCommand(setupCommand(env, "/"))
	return cmd
}

func setupCommand(env *cli.Env, root string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Print the lines by which containerd asks it first",
		Long: `Print the lines by which the containerd of this host asks the registry of seeder
(registry.bind) before it asks the real one: registries.yaml of k3s or rke2, or a
hosts.toml for a containerd of its own. With them a pod whose pull policy is Always starts
from an announced image; what is not announced is pulled as before. The lines have the
registry's password. Nothing is written unless --write is given, and no file that is there
is changed.`,
		Example: "  seeder registry setup\n  seeder registry setup --for containerd\n  seeder registry setup --write",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	config.FileFlag(env, cmd)
	kind := cmd.Flags().String("for", "auto", "`kind` of configuration: k3s, rke2, containerd, or auto: what this host has")
	write := cmd.Flags().Bool("write", false, "write the file if it does not exist")
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := config.Load(env, nil)
		if err != nil {
			return err
		}
		lines, err := linesFor(*kind, root, cfg.Config)
		if err != nil {
			return err
		}
		return lines.give(env, root, *write)
	}
	return cmd
}

// lines are a file and what makes it count.
type lines struct {
	path, text, then string
}

// linesFor are those of one kind of configuration of the host below root.
func linesFor(kind, root string, cfg config.Config) (lines, error) {
	addr, err := netip.ParseAddrPort(cfg.Registry.Bind)
	if err != nil {
		return lines{}, errors.New("registry.bind is not set: set it, e.g. to 127.0.0.1:7953, in " + config.DefaultFile + " and restart the daemon")
	}
	c, err := load(cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return lines{}, fmt.Errorf("%s has no credentials yet: the daemon makes them when it starts with registry.bind; restart it", cfg.DataDir)
	}
	if err != nil {
		return lines{}, err
	}
	if kind == "auto" {
		kind = found(root)
	}
	switch kind {
	case "k3s":
		return lines{"/etc/rancher/k3s/registries.yaml", registriesYAML(addr, c),
			"k3s reads it when it starts: systemctl restart k3s on a server, systemctl restart k3s-agent on an agent. Containers go on running."}, nil
	case "rke2":
		return lines{"/etc/rancher/rke2/registries.yaml", registriesYAML(addr, c),
			"rke2 reads it when it starts: systemctl restart rke2-server on a server, systemctl restart rke2-agent on an agent. Containers go on running."}, nil
	case "containerd":
		return lines{"/etc/containerd/certs.d/_default/hosts.toml", hostsTOML(addr, c),
			"containerd reads it at the next pull, without a restart, if config_path of its CRI plugin's registry is /etc/containerd/certs.d. A hosts.toml of one registry takes precedence over _default for that registry."}, nil
	}
	return lines{}, cli.Usagef("invalid --for %q: want auto, k3s, rke2 or containerd", kind)
}

// found is the kind of configuration that the host below root has.
func found(root string) string {
	for _, kind := range []string{"k3s", "rke2"} {
		if info, err := os.Stat(filepath.Join(root, "etc/rancher", kind)); err == nil && info.IsDir() {
			return kind
		}
	}
	return "containerd"
}

func registriesYAML(addr netip.AddrPort, c Credentials) string {
	return fmt.Sprintf(`mirrors:
  "*":
    endpoint:
      - "http://%[1]s"
configs:
  "%[1]s":
    auth:
      username: "%[2]s"
      password: "%[3]s"
`, addr, c.User, c.Password)
}

func hostsTOML(addr netip.AddrPort, c Credentials) string {
	return fmt.Sprintf(`[host."http://%[1]s"]
  capabilities = ["pull", "resolve"]
  [host."http://%[1]s".header]
    Authorization = "%[2]s"
`, addr, c.header())
}

// give prints the lines, or writes them below root.
func (l lines) give(env *cli.Env, root string, write bool) error {
	if !write {
		fmt.Fprintf(env.Stdout, "# %s\n%s", l.path, l.text)
		fmt.Fprintln(env.Stderr, l.then)
		return nil
	}
	path := filepath.Join(root, l.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", l.path, err)
	}
	err := disk.CreateFile(path, []byte(l.text))
	if errors.Is(err, fs.ErrExist) {
		have, rerr := cli.ReadBounded(path, config.MaxFileBytes)
		if rerr == nil && string(have) == l.text {
			fmt.Fprintln(env.Stdout, l.path+" is as it should be")
			return nil
		}
		return fmt.Errorf("%s is there already and was not changed; add to it what `seeder registry setup` prints", l.path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", l.path, err)
	}
	fmt.Fprintf(env.Stdout, "wrote %s\n%s\n", l.path, l.then)
	return nil
}
