package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/store/ctrd"
)

func configCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show or check the configuration",
		Example: "  seeder config check\n  seeder config show",
		Args:    cli.NoSuchCommand,
		RunE:    cli.NeedSubcommand,
	}
	cmd.AddCommand(configShowCommand(env), configCheckCommand(env))
	return cmd
}

func configShowCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print every key with its value and where the value comes from",
		Long: `Print every key with its value and where the value comes from: default, file,
env (environment variable) or flag; for the secret, the address that others are told,
the hosts to join, containerd's socket and its snapshotter, where they are found on
this host, and why it is those. It takes the daemon's
flags, and never shows the secret.`,
		Example: "  seeder config show\n  seeder config show --config ./seeder.yaml -o json",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	config.KeyFlags(env, cmd)
	out := cli.OutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(env, cmd.Flags())
		printWarnings(env, cfg)
		if err != nil {
			return err
		}
		noteFound(cmd.Context(), &cfg, "/")
		if *out == "json" {
			return cli.PrintJSON(env.Stdout, map[string]any{"settings": cfg.Settings})
		}
		w := tabwriter.NewWriter(env.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "KEY\tVALUE\tFROM")
		for _, s := range cfg.Settings {
			fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, showValue(s.Value), s.Source)
		}
		return w.Flush()
	}
	return cmd
}

// found notes what this host has below root for keys that nobody has set.
func noteFound(ctx context.Context, l *config.Loaded, root string) {
	if l.SecretFile == "" {
		source := ""
		switch f, err := loadSecrets(l.Config, root); {
		case err != nil:
			first, _, more := strings.Cut(err.Error(), "\n")
			if source = "none that can be used: " + first; more {
				source += "; seeder config check says more"
			}
		case f.alone:
			source = "none; this node stays alone"
		default:
			source = f.source
		}
		l.Note("secret_file", "", "default ("+source+")")
	}
	if hosts, from := joins(l.Config, root); from != "" {
		l.Note("gossip.join", hosts, "default (the servers in "+from+")")
	}
	switch c, err := newAddressing(l.Config, root).Choose(ctx, nil); {
	case err != nil:
		l.Note("gossip.advertise", l.Gossip.Advertise, l.SourceOf("gossip.advertise")+" (none now: "+err.Error()+")")
	default:
		l.Note("gossip.advertise", c.Addr.String(), l.SourceOf("gossip.advertise")+" ("+whyAddress(c)+")")
	}
	if l.Containerd.Address == ctrd.Auto {
		socket, why, err := findSocket(root)
		if err != nil {
			socket, why = ctrd.Auto, "none now: "+err.Error()
		}
		l.Note("containerd.address", socket, l.SourceOf("containerd.address")+" (auto: "+why+")")
	}
	if l.Containerd.Snapshotter == ctrd.Auto {
		name, why, err := findSnapshotter(ctx, l, root)
		if err != nil {
			name, why = ctrd.Auto, "the one that CRI uses, which does not answer now"
		}
		l.Note("containerd.snapshotter", name, l.SourceOf("containerd.snapshotter")+" (auto: "+why+")")
	}
}

// askTimeout is what containerd has to say which snapshotter it is.
const askTimeout = 3 * time.Second

// findSnapshotter asks CRI which one it uses, and says why it is that one.
func findSnapshotter(ctx context.Context, l *config.Loaded, root string) (name, why string, err error) {
	address := l.Containerd.Address
	if address == ctrd.Embedded {
		return ctrd.Auto, "an embedded store has none", nil
	}
	c, err := ctrd.Open(ctrd.Config{Address: address, Namespace: l.Containerd.Namespace, Find: socketFinder(root)})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, _, err := c.Health(ctx); err != nil {
		return "", "", err
	}
	name, err = c.SnapshotterName(ctx)
	return name, "that of CRI; overlayfs where there is no CRI", err
}

func configCheckCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Say everything that is wrong with the configuration",
		Example: "  seeder config check --config ./seeder.yaml",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	config.KeyFlags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(env, cmd.Flags())
		if err == nil {
			err = checkAddresses(cmd.Context(), &cfg, newAddressing(cfg.Config, "/"))
		}
		printWarnings(env, cfg)
		if err != nil {
			return err
		}
		if f, err := loadSecrets(cfg.Config, "/"); err != nil {
			return err
		} else if f.note != "" {
			fmt.Fprintln(env.Stderr, "warning: "+f.note)
		}
		if cfg.Containerd.Address == ctrd.Auto {
			if _, _, err := findSocket("/"); errors.Is(err, errNoContainerd) {
				return cli.Usagef("containerd.address: %q: %w", cfg.Containerd.Address, err)
			}
		}
		_, err = fmt.Fprintln(env.Stdout, "the configuration is good")
		return err
	}
	return cmd
}

func printWarnings(env *cli.Env, cfg config.Loaded) {
	for _, w := range cfg.Warnings {
		fmt.Fprintln(env.Stderr, "warning: "+w)
	}
}

func showValue(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return `""`
		}
		return v
	case []string:
		return "[" + strings.Join(v, ", ") + "]"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}
