//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/k3s"
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
		Short: "Print every key with its value and source",
		Long: `Print every key with its value and the source of the value: default, file, env
(environment variable) or flag. For the secret, the advertised address, the hosts to
join, containerd's socket and its snapshotter, it says where they were found on this
host and why they were chosen. It takes the daemon's flags, and never shows the secret.`,
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
		k3s.NoteFound(cmd.Context(), &cfg, "/")
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

func configCheckCommand(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Check the configuration and list all errors",
		Example: "  seeder config check --config ./seeder.yaml",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	config.KeyFlags(env, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(env, cmd.Flags())
		if err == nil {
			err = k3s.CheckAddresses(cmd.Context(), &cfg, k3s.NewAddressing(cfg.Config, "/"))
		}
		printWarnings(env, cfg)
		if err != nil {
			return err
		}
		if f, err := k3s.LoadSecrets(cfg.Config, "/"); err != nil {
			return err
		} else if f.Note != "" {
			fmt.Fprintln(env.Stderr, "warning: "+f.Note)
		}
		if cfg.Containerd.Address == ctrd.Auto {
			if _, _, err := k3s.FindSocket("/"); errors.Is(err, k3s.ErrNoContainerd) {
				return cli.Usagef("containerd.address: %q: %w", cfg.Containerd.Address, err)
			}
		}
		_, err = fmt.Fprintln(env.Stdout, "the configuration is valid")
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
