package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"seeder/cmd/seeder/internal/cli"
)

// defaultConfigFile is read where it exists and --config is not given.
const defaultConfigFile = "/etc/seeder/seeder.yaml"

// envPrefix starts the environment variable of every key.
const envPrefix = "SEEDER_"

// Config is the whole configuration, one field for each key. Sizes are bytes,
// rates bytes per second.
type Config struct {
	NodeName   string           `mapstructure:"node_name"`
	DataDir    string           `mapstructure:"data_dir"`
	SecretFile string           `mapstructure:"secret_file"`
	Gossip     GossipConfig     `mapstructure:"gossip"`
	Transfer   TransferConfig   `mapstructure:"transfer"`
	Containerd ContainerdConfig `mapstructure:"containerd"`
	Images     ImagesConfig     `mapstructure:"images"`
	Announcers []string         `mapstructure:"announcers"`
	Labels     []string         `mapstructure:"labels"` // key=value
	API        APIConfig        `mapstructure:"api"`
	HTTP       HTTPConfig       `mapstructure:"http"`
	Log        LogConfig        `mapstructure:"log"`
}

// GossipConfig is how this node finds and meets the others.
type GossipConfig struct {
	Bind      string   `mapstructure:"bind"`
	Advertise string   `mapstructure:"advertise"`
	Join      []string `mapstructure:"join"`
}

// TransferConfig is how images travel.
type TransferConfig struct {
	Bind          string `mapstructure:"bind"`
	Advertise     string `mapstructure:"advertise"`
	UploadLimit   string `mapstructure:"upload_limit"`
	DownloadLimit string `mapstructure:"download_limit"`
	Cache         string `mapstructure:"cache"`
}

// ContainerdConfig is where this host's images live.
type ContainerdConfig struct {
	Address     string `mapstructure:"address"`
	Namespace   string `mapstructure:"namespace"`
	Snapshotter string `mapstructure:"snapshotter"`
	Platform    string `mapstructure:"platform"`
}

// ImagesConfig is what this node does with images.
type ImagesConfig struct {
	Pin          bool     `mapstructure:"pin"`
	KeepPrevious int      `mapstructure:"keep_previous"`
	Follow       bool     `mapstructure:"follow"`
	Auto         []string `mapstructure:"auto"`
	Accept       []string `mapstructure:"accept"`
	MinFree      string   `mapstructure:"min_free"`
}

// APIConfig is the control API.
type APIConfig struct {
	Socket string `mapstructure:"socket"`
}

// HTTPConfig is the listener for metrics and health.
type HTTPConfig struct {
	Bind  string `mapstructure:"bind"`
	Pprof bool   `mapstructure:"pprof"`
}

// LogConfig is what the daemon writes to standard error.
type LogConfig struct {
	Level  string `mapstructure:"level"`
	Format string `mapstructure:"format"`
}

// key is one configuration key: its default gives its kind (string, bool, int or
// []string), its usage is the help of the daemon's flag.
type key struct {
	name  string
	value any
	usage string
}

// configKeys is every key with its default, in the order in which they are shown.
func configKeys() []key {
	return []key{
		{"node_name", "", "`name` of this node, unique in the cluster (default: the hostname)"},
		{"data_dir", "/var/lib/seeder", "`directory` of identity, catalog and unfinished images"},
		{"secret_file", "", "`file` with the cluster's secret (default " + defaultSecretFile + " if present, else derived from the k3s token)"},
		{"gossip.bind", "0.0.0.0:7950", "`ip:port` for gossip, tcp and udp"},
		{"gossip.advertise", "", "`address`, interface, CIDR or ip:port at which others reach gossip.bind (default: found on this host)"},
		{"gossip.join", []string{}, "`host[:port]` of nodes to join, comma-separated (default: the servers that this host's k3s knows)"},
		{"transfer.bind", "0.0.0.0:7951", "`ip:port` for image transfer, tcp"},
		{"transfer.advertise", "", "`ip[:port]` at which others reach transfer.bind"},
		{"transfer.upload_limit", "0", "`bytes` per second sent at most, as 50MiB; 0: no limit"},
		{"transfer.download_limit", "0", "`bytes` per second received at most, as 50MiB; 0: no limit"},
		{"transfer.cache", "5%", "`share` or size of data_dir's disk that compressed chunks may take, as 5% or 1GiB"},
		{"containerd.address", "auto", "containerd's `socket`, auto, or embedded: a store of its own in data_dir"},
		{"containerd.namespace", "k8s.io", "containerd `namespace`"},
		{"containerd.snapshotter", "auto", "containerd `snapshotter`; auto: the one that CRI uses"},
		{"containerd.platform", "auto", "`platform` that this host runs, as linux/arm64; auto: its own"},
		{"images.pin", true, "protect announced images from the kubelet's garbage collection"},
		{"images.keep_previous", 1, "`number` of previous versions of an image kept"},
		{"images.follow", true, "announce an announced image again when it changes on the host that announced it"},
		{"images.auto", []string{}, "`patterns` of references announced without being asked, comma-separated; local: all that came from no registry"},
		{"images.accept", []string{"*"}, "`patterns` of references that this node holds, comma-separated"},
		{"images.min_free", "10%", "`share` or size of the disk that stays free, as 10% or 5GiB"},
		{"announcers", []string{}, "`ids` of the nodes that may announce, comma-separated; none: every member"},
		{"labels", []string{}, "labels of this node as `key=value`, comma-separated, for announce --on"},
		{"api.socket", "/run/seeder/seeder.sock", "unix `socket` of the control API"},
		{"http.bind", "127.0.0.1:7952", "`ip:port` of the status page, /metrics, /healthz and /readyz; empty: off"},
		{"http.pprof", false, "serve Go's profiles at /debug/pprof/ there, too"},
		{"log.level", "info", "`level` of the log: debug, info, warn or error"},
		{"log.format", "text", "`format` of the log: text or json"},
	}
}

func (k key) env() string  { return envPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_")) }
func (k key) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(k.name) }

// setting is where the value of one key came from.
type setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // default, file PATH, env NAME or flag --NAME
}

// loaded is a configuration with the origin of each of its values.
type loaded struct {
	Config
	Settings []setting
	Warnings []string
}

// loadConfig reads the configuration: flags (nil: none) before environment
// before file before defaults. Every problem that can be found is in the error
// at once, and the exit code of it is cli.ExitUsage.
func loadConfig(env *cli.Env, flags *pflag.FlagSet) (loaded, error) {
	var p problems
	path, values := readConfigFile(env, &p)
	v := viper.New()
	var out loaded
	for _, k := range configKeys() {
		s := setting{Key: k.name, Value: k.value, Source: "default"}
		raw, from := any(nil), ""
		if fv, ok := values[k.name]; ok {
			raw, from = fv, "file "+path
		}
		if ev, ok := env.LookupEnv(k.env()); ok {
			raw, from = ev, "env "+k.env()
		}
		if f := lookupFlag(flags, k.flag()); f != nil && f.Changed {
			raw, from = f.Value.String(), "flag --"+k.flag()
		}
		if from != "" {
			if val, err := k.parse(raw); err != nil {
				p.add(k.name, raw, "%v (from %s)", err, from)
			} else {
				s.Value, s.Source = val, from
			}
		}
		v.SetDefault(k.name, k.value)
		v.Set(k.name, s.Value)
		out.Settings = append(out.Settings, s)
	}
	if err := v.UnmarshalExact(&out.Config); err != nil {
		return loaded{}, fmt.Errorf("assemble the configuration: %w", err)
	}
	out.Warnings = unknownEnv(env)
	out.complete()
	out.validate(&p)
	return out, p.err()
}

func lookupFlag(flags *pflag.FlagSet, name string) *pflag.Flag {
	if flags == nil {
		return nil
	}
	return flags.Lookup(name)
}

// readConfigFile returns the file that was read and its values by key.
func readConfigFile(env *cli.Env, p *problems) (string, map[string]any) {
	path, asked := defaultConfigFile, false
	if env, ok := env.LookupEnv(envPrefix + "CONFIG"); ok && env != "" {
		path, asked = env, true
	}
	if env.ConfigFile != "" {
		path, asked = env.ConfigFile, true
	}
	data, err := cli.ReadBounded(path, maxConfigBytes)
	switch {
	case err == nil:
		return path, parseConfigFile(path, data, p)
	case errors.Is(err, fs.ErrNotExist) && !asked:
		return path, nil
	case errors.Is(err, fs.ErrPermission) && !asked && env.Socket != "":
		return path, nil // a command that knows the socket needs nothing else of it
	}
	p.add("--config", path, "%v; name a readable file, or leave it out for the defaults", err)
	return path, nil
}

// complete fills in what has a default that depends on the host or on another
// key, so that the rest of the program need not know.
func (l *loaded) complete() {
	if l.NodeName == "" {
		if host, err := os.Hostname(); err == nil {
			l.NodeName = strings.ToLower(host)
			l.note("node_name", l.NodeName, "default (hostname)")
		}
	}
}

func (l *loaded) note(key string, value any, source string) {
	l.set(setting{key, value, source})
}

func (l *loaded) set(s setting) {
	for i := range l.Settings {
		if l.Settings[i].Key == s.Key {
			l.Settings[i] = s
		}
	}
}

// unknownEnv names the environment variables that look like keys and are none:
// a misspelt one would otherwise be ignored in silence.
func unknownEnv(env *cli.Env) []string {
	known := map[string]bool{envPrefix + "CONFIG": true}
	var names []string
	for _, k := range configKeys() {
		known[k.env()] = true
		names = append(names, k.env())
	}
	var out []string
	for _, kv := range env.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, envPrefix) && !known[name] {
			out = append(out, fmt.Sprintf("environment variable %s is no configuration key%s", name, didYouMean(name, names)))
		}
	}
	return out
}

// keyFlags adds a flag for every key. --gossip.bind and --gossip_bind are
// accepted for --gossip-bind.
func keyFlags(env *cli.Env, cmd *cobra.Command) {
	configFlag(env, cmd)
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.NewReplacer(".", "-", "_", "-").Replace(name))
	})
	for _, k := range configKeys() {
		switch d := k.value.(type) {
		case bool:
			cmd.Flags().Bool(k.flag(), d, k.usage)
		case int:
			cmd.Flags().Int(k.flag(), d, k.usage)
		case []string:
			cmd.Flags().String(k.flag(), strings.Join(d, ","), k.usage)
		case string:
			cmd.Flags().String(k.flag(), d, k.usage)
		}
	}
}
