// Package config is the configuration of seeder: its keys, where their values come from,
// and whether they are valid.
//
// It owns the keys, their defaults and their checks. It never looks at this host, but for
// its name: what k3s and the kernel know is asked elsewhere.
//
// Invariant: Load names every problem at once, each with its key and value; a key that
// nobody knows is an error, never ignored.
package config

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

// DefaultFile is read where it exists and --config is not given.
const DefaultFile = "/etc/seeder/seeder.yaml"

// EnvPrefix starts the environment variable of every key.
const EnvPrefix = "SEEDER_"

// Config is the whole configuration, one field for each key. Sizes are bytes,
// rates bytes per second.
type Config struct {
	NodeName   string     `mapstructure:"node_name"`
	DataDir    string     `mapstructure:"data_dir"`
	SecretFile string     `mapstructure:"secret_file"`
	Gossip     Gossip     `mapstructure:"gossip"`
	Transfer   Transfer   `mapstructure:"transfer"`
	Containerd Containerd `mapstructure:"containerd"`
	Images     Images     `mapstructure:"images"`
	Announcers []string   `mapstructure:"announcers"`
	Labels     []string   `mapstructure:"labels"` // key=value
	API        API        `mapstructure:"api"`
	HTTP       HTTP       `mapstructure:"http"`
	Registry   Registry   `mapstructure:"registry"`
	Log        Log        `mapstructure:"log"`
}

// Gossip is how this node finds and meets the others.
type Gossip struct {
	Bind      string   `mapstructure:"bind"`
	Advertise string   `mapstructure:"advertise"`
	Join      []string `mapstructure:"join"`
}

// Transfer is how images travel.
type Transfer struct {
	Bind          string `mapstructure:"bind"`
	Advertise     string `mapstructure:"advertise"`
	UploadLimit   string `mapstructure:"upload_limit"`
	DownloadLimit string `mapstructure:"download_limit"`
	Cache         string `mapstructure:"cache"`
	Deltas        string `mapstructure:"deltas"`
}

// The values of transfer.deltas.
const (
	DeltasAuto = "auto"
	DeltasOff  = "off"
)

// Containerd is where this host's images live.
type Containerd struct {
	Address     string `mapstructure:"address"`
	Namespace   string `mapstructure:"namespace"`
	Snapshotter string `mapstructure:"snapshotter"`
	Platform    string `mapstructure:"platform"`
}

// Images is what this node does with images.
type Images struct {
	Pin          bool     `mapstructure:"pin"`
	KeepPrevious int      `mapstructure:"keep_previous"`
	Follow       bool     `mapstructure:"follow"`
	Auto         []string `mapstructure:"auto"`
	Accept       []string `mapstructure:"accept"`
	MinFree      string   `mapstructure:"min_free"`
}

// API is the control API.
type API struct {
	Socket string `mapstructure:"socket"`
}

// HTTP is the listener for metrics and health.
type HTTP struct {
	Bind  string `mapstructure:"bind"`
	Pprof bool   `mapstructure:"pprof"`
}

// Registry is the registry of this host, for its containerd.
type Registry struct {
	Bind string `mapstructure:"bind"`
	Push bool   `mapstructure:"push"`
}

// Log is what the daemon writes to standard error.
type Log struct {
	Level  string `mapstructure:"level"`
	Format string `mapstructure:"format"`
}

// Key is one configuration key: its default gives its kind (string, bool, int or
// []string), its usage is the help of the daemon's flag.
type Key struct {
	Name  string
	Value any
	Usage string
}

// Keys is every key with its default, in the order in which they are shown.
func Keys() []Key {
	return []Key{
		{"node_name", "", "`name` of this node, unique in the cluster (default: the hostname)"},
		{"data_dir", "/var/lib/seeder", "`directory` of identity, catalog and unfinished images"},
		{"secret_file", "", "`file` with the cluster's secret (default " + DefaultSecretFile + " if present, else derived from the k3s token)"},
		{"gossip.bind", "0.0.0.0:7950", "`ip:port` for gossip, udp"},
		{"gossip.advertise", "", "`address`, interface, CIDR or ip:port at which others reach gossip.bind (default: found on this host)"},
		{"gossip.join", []string{}, "`host[:port]` of nodes to join, at their transfer ports, comma-separated (default: the servers of this host's k3s)"},
		{"transfer.bind", "0.0.0.0:7951", "`ip:port` for image transfer, tcp"},
		{"transfer.advertise", "", "`ip[:port]` at which others reach transfer.bind"},
		{"transfer.upload_limit", "0", "`bytes` per second sent at most, e.g. 50MiB; 0: no limit"},
		{"transfer.download_limit", "0", "`bytes` per second received at most, e.g. 50MiB; 0: no limit"},
		{"transfer.cache", "5%", "`share` or size of data_dir's disk that compressed chunks may take, e.g. 5% or 1GiB"},
		{"transfer.deltas", DeltasAuto, "`auto`: layers travel as deltas between two builds where that is sooner; off: never"},
		{"containerd.address", "auto", "containerd's `socket`, auto, or embedded: a store of its own in data_dir"},
		{"containerd.namespace", "k8s.io", "containerd `namespace`"},
		{"containerd.snapshotter", "auto", "containerd `snapshotter`; auto: the one that CRI uses"},
		{"containerd.platform", "auto", "`platform` that this host runs, e.g. linux/arm64; auto: its own"},
		{"images.pin", true, "protect announced images from the kubelet's garbage collection"},
		{"images.keep_previous", 1, "`number` of previous versions of an image kept"},
		{"images.follow", true, "announce an image again when it changes on the host that announced it"},
		{"images.auto", []string{}, "`patterns` of references that this node announces by itself, comma-separated; local: all that were not pulled from a registry"},
		{"images.accept", []string{"*"}, "`patterns` of references that this node holds, comma-separated"},
		{"images.min_free", "10%", "`share` or size of the disk to keep free, e.g. 10% or 5GiB"},
		{"announcers", []string{}, "`ids` of the nodes that may announce, comma-separated; none: every member"},
		{"labels", []string{}, "labels of this node as `key=value`, comma-separated, for announce --on"},
		{"api.socket", "/run/seeder/seeder.sock", "unix `socket` of the control API"},
		{"http.bind", "127.0.0.1:7952", "`ip:port` of the status page, /metrics, /healthz and /readyz; empty: off"},
		{"http.pprof", false, "serve Go's profiles at http.bind/debug/pprof/"},
		{"registry.bind", "", "loopback `ip:port` of a registry of the announced images, e.g. 127.0.0.1:7953, for pods that always pull; empty: off"},
		{"registry.push", false, "take images that are pushed to registry.bind, and announce them"},
		{"log.level", "info", "`level` of the log: debug, info, warn or error"},
		{"log.format", "text", "`format` of the log: text or json"},
	}
}

// Env is the name of the environment variable of the key.
func (k Key) Env() string { return EnvPrefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_")) }

// Flag is the name of the daemon's flag for the key, without dashes.
func (k Key) Flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(k.Name) }

// Setting is where the value of one key came from.
type Setting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // default, file PATH, env NAME or flag --NAME
}

// Loaded is a configuration with the origin of each of its values.
type Loaded struct {
	Config
	Settings []Setting
	Warnings []string
}

// Load reads the configuration: flags (nil: none) before environment
// before file before defaults. Every problem that can be found is in the error
// at once, and the exit code of it is cli.ExitUsage.
func Load(env *cli.Env, flags *pflag.FlagSet) (Loaded, error) {
	var p Problems
	path, values := readConfigFile(env, &p)
	v := viper.New()
	var out Loaded
	for _, k := range Keys() {
		s := Setting{Key: k.Name, Value: k.Value, Source: "default"}
		raw, from := any(nil), ""
		if fv, ok := values[k.Name]; ok {
			raw, from = fv, "file "+path
		}
		if ev, ok := env.LookupEnv(k.Env()); ok {
			raw, from = ev, "env "+k.Env()
		}
		if f := lookupFlag(flags, k.Flag()); f != nil && f.Changed {
			raw, from = f.Value.String(), "flag --"+k.Flag()
		}
		if from != "" {
			if val, err := k.parse(raw); err != nil {
				p.Add(k.Name, raw, "%v (from %s)", err, from)
			} else {
				s.Value, s.Source = val, from
			}
		}
		v.SetDefault(k.Name, k.Value)
		v.Set(k.Name, s.Value)
		out.Settings = append(out.Settings, s)
	}
	if err := v.UnmarshalExact(&out.Config); err != nil {
		return Loaded{}, fmt.Errorf("assemble the configuration: %w", err)
	}
	out.Warnings = unknownEnv(env)
	out.complete()
	out.validate(&p)
	return out, p.Err()
}

func lookupFlag(flags *pflag.FlagSet, name string) *pflag.Flag {
	if flags == nil {
		return nil
	}
	return flags.Lookup(name)
}

// readConfigFile returns the file that was read and its values by key.
func readConfigFile(env *cli.Env, p *Problems) (string, map[string]any) {
	path, asked := DefaultFile, false
	if env, ok := env.LookupEnv(EnvPrefix + "CONFIG"); ok && env != "" {
		path, asked = env, true
	}
	if env.ConfigFile != "" {
		path, asked = env.ConfigFile, true
	}
	data, err := cli.ReadBounded(path, MaxFileBytes)
	switch {
	case err == nil:
		return path, parseFile(path, data, p)
	case errors.Is(err, fs.ErrNotExist) && !asked:
		return path, nil
	case errors.Is(err, fs.ErrPermission) && !asked && env.Socket != "":
		return path, nil // a command that knows the socket needs nothing else of it
	}
	p.Add("--config", path, "%v; name a readable file, or leave it out for the defaults", err)
	return path, nil
}

// complete fills in what has a default that depends on the host or on another
// key, so that the rest of the program need not know.
func (l *Loaded) complete() {
	if l.NodeName == "" {
		if host, err := os.Hostname(); err == nil {
			l.NodeName = strings.ToLower(host)
			l.Note("node_name", l.NodeName, "default (hostname)")
		}
	}
}

// Note replaces the value and the source of a key in Settings, as they are shown to
// people.
func (l *Loaded) Note(key string, value any, source string) {
	l.Set(Setting{key, value, source})
}

// Set replaces the setting of the same key.
func (l *Loaded) Set(s Setting) {
	for i := range l.Settings {
		if l.Settings[i].Key == s.Key {
			l.Settings[i] = s
		}
	}
}

// unknownEnv names the environment variables that look like keys and are none:
// a misspelt one would otherwise be ignored in silence.
func unknownEnv(env *cli.Env) []string {
	known := map[string]bool{EnvPrefix + "CONFIG": true}
	var names []string
	for _, k := range Keys() {
		known[k.Env()] = true
		names = append(names, k.Env())
	}
	var out []string
	for _, kv := range env.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, EnvPrefix) && !known[name] {
			out = append(out, fmt.Sprintf("unknown environment variable %s%s", name, didYouMean(name, names)))
		}
	}
	return out
}

// KeyFlags adds a flag for every key. --gossip.bind and --gossip_bind are
// accepted for --gossip-bind.
func KeyFlags(env *cli.Env, cmd *cobra.Command) {
	FileFlag(env, cmd)
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.NewReplacer(".", "-", "_", "-").Replace(name))
	})
	for _, k := range Keys() {
		switch d := k.Value.(type) {
		case bool:
			cmd.Flags().Bool(k.Flag(), d, k.Usage)
		case int:
			cmd.Flags().Int(k.Flag(), d, k.Usage)
		case []string:
			cmd.Flags().String(k.Flag(), strings.Join(d, ","), k.Usage)
		case string:
			cmd.Flags().String(k.Flag(), d, k.Usage)
		}
	}
}

// SourceOf is where the value of a key came from, "" where there is no such key.
func (l *Loaded) SourceOf(key string) string {
	for _, s := range l.Settings {
		if s.Key == key {
			return s.Source
		}
	}
	return ""
}

// FileFlag adds --config to cmd. Without it env.ConfigFile stays what it is.
func FileFlag(env *cli.Env, cmd *cobra.Command) {
	cmd.Flags().StringVar(&env.ConfigFile, "config", env.ConfigFile, "configuration `file` (default "+DefaultFile+", which need not exist)")
}

// DefaultSecretFile is read where it exists and secret_file is not set.
const DefaultSecretFile = "/etc/seeder/secret"
