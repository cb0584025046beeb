package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show or check the configuration",
		Example: "  seeder config check\n  seeder config show",
		Args:    noSuchCommand,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(a.configShowCommand(), a.configCheckCommand())
	return cmd
}

func (a *app) configShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print every key with its value and where the value comes from",
		Long: `Print every key with its value and where the value comes from: default, file,
env (environment variable) or flag; for the secret and the hosts to join, where they
are found on this host. It takes the daemon's flags.`,
		Example: "  seeder config show\n  seeder config show --config ./seeder.yaml -o json",
		Args:    argCount(0, 0, "no arguments"),
	}
	a.keyFlags(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.loadConfig(cmd.Flags())
		a.warn(cfg)
		if err != nil {
			return err
		}
		cfg.found("/")
		if *out == "json" {
			return printJSON(a.stdout, map[string]any{"settings": cfg.Settings})
		}
		w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "KEY\tVALUE\tFROM")
		for _, s := range cfg.Settings {
			fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, showValue(s.Value), s.Source)
		}
		return w.Flush()
	}
	return cmd
}

// found notes what this host has below root for keys that nobody has set.
func (l *loaded) found(root string) {
	if l.SecretFile == "" {
		source := "default (none that can be used; seeder config check says more)"
		if f, err := loadSecrets(l.Config, root); err == nil {
			source = "default (" + f.source + ")"
		}
		l.note("secret_file", "", source)
	}
	if hosts, from := joins(l.Config, root); from != "" {
		l.note("gossip.join", hosts, "default (the servers in "+from+")")
	}
}

func (a *app) configCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Say everything that is wrong with the configuration",
		Example: "  seeder config check --config ./seeder.yaml",
		Args:    argCount(0, 0, "no arguments"),
	}
	a.keyFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.loadConfig(cmd.Flags())
		a.warn(cfg)
		if err != nil {
			return err
		}
		if f, err := loadSecrets(cfg.Config, "/"); err != nil {
			return err
		} else if f.note != "" {
			fmt.Fprintln(a.stderr, "warning: "+f.note)
		}
		_, err = fmt.Fprintln(a.stdout, "the configuration is good")
		return err
	}
	return cmd
}

func (a *app) warn(cfg loaded) {
	for _, w := range cfg.Warnings {
		fmt.Fprintln(a.stderr, "warning: "+w)
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
