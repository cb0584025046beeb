package config

import (
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
)

// loadWith loads a configuration from a file, an environment and flags.
func loadEnv(t *testing.T, yaml string, env map[string]string, flags ...string) (Loaded, error) {
	t.Helper()
	a := clitest.Env(t, yaml, env)
	cmd := &cobra.Command{}
	KeyFlags(a, cmd)
	if err := cmd.ParseFlags(flags); err != nil {
		t.Fatal(err)
	}
	return Load(a, cmd.Flags())
}

func sourceOf(l Loaded, key string) string {
	for _, s := range l.Settings {
		if s.Key == key {
			word, _, _ := strings.Cut(s.Source, " ")
			return word
		}
	}
	return "none"
}

// TestShippedConfigIsTheDefaults: configs/seeder.yaml has every key, and each
// with its default.
func TestShippedConfigIsTheDefaults(t *testing.T) {
	t.Parallel()
	shipped, err := os.ReadFile("../../../../configs/seeder.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := loadEnv(t, string(shipped), nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadEnv(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Config, got.Config); diff != "" {
		t.Errorf("defaults (-) and configs/seeder.yaml (+) differ:\n%s", diff)
	}
	for _, s := range got.Settings {
		if !strings.HasPrefix(s.Source, "file") && s.Key != "node_name" {
			t.Errorf("configs/seeder.yaml lacks %s", s.Key)
		}
	}
}

func TestConfigPrecedence(t *testing.T) {
	t.Parallel()
	yaml := "transfer: {upload_limit: 50MiB}\n"
	env := map[string]string{"SEEDER_TRANSFER_UPLOAD_LIMIT": "40MiB"}
	flag := "--transfer-upload-limit=30MiB"
	for _, tc := range []struct {
		name, yaml    string
		env           map[string]string
		flags         []string
		value, source string
	}{
		{"default", "", nil, nil, "0", "default"},
		{"file over default", yaml, nil, nil, "50MiB", "file"},
		{"env over file", yaml, env, nil, "40MiB", "env"},
		{"flag over env", yaml, env, []string{flag}, "30MiB", "flag"},
		{"flag spelt as the key", yaml, env, []string{"--transfer.upload_limit=30MiB"}, "30MiB", "flag"},
		{"flag back to the default", yaml, env, []string{"--transfer-upload-limit=0"}, "0", "flag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := loadEnv(t, tc.yaml, tc.env, tc.flags...)
			if err != nil {
				t.Fatal(err)
			}
			if got.Transfer.UploadLimit != tc.value || sourceOf(got, "transfer.upload_limit") != tc.source {
				t.Errorf("%s from %s, want %s from %s", got.Transfer.UploadLimit, sourceOf(got, "transfer.upload_limit"), tc.value, tc.source)
			}
		})
	}
}

// TestEveryKeyFromEverywhere sets each key by file, environment and flag.
func TestEveryKeyFromEverywhere(t *testing.T) {
	t.Parallel()
	values := map[string]string{
		"node_name": "n7", "data_dir": "/d", "secret_file": "/s",
		"gossip.bind": "127.0.0.1:1", "gossip.advertise": "10.0.0.1:1", "gossip.join": "a:2,b:3",
		"transfer.bind": "127.0.0.1:2", "transfer.advertise": "10.0.0.1", "transfer.upload_limit": "1MB", "transfer.download_limit": "2MB",
		"containerd.address": "/c.sock", "containerd.namespace": "x", "containerd.snapshotter": "native", "containerd.platform": "linux/arm64",
		"images.pin": "false", "images.keep_previous": "3", "images.follow": "false", "images.auto": "a/*", "images.accept": "b/*", "images.min_free": "5GiB", "transfer.cache": "1GiB", "transfer.deltas": "off",
		"announcers": strings.Repeat("a", 32), "labels": "Zone.example/x=a,rack=2", "api.socket": "/r.sock", "http.bind": "127.0.0.1:3", "http.pprof": "true",
		"registry.bind": "127.0.0.1:4", "registry.push": "true",
		"log.level": "debug", "log.format": "json",
	}
	with := map[string]map[string]string{"registry.push": {"SEEDER_REGISTRY_BIND": "127.0.0.1:4"}} // what a key needs
	for _, k := range Keys() {
		value, ok := values[k.Name]
		if !ok {
			t.Fatalf("no test value for %s", k.Name)
		}
		env := with[k.Name]
		section, leaf, nested := strings.Cut(k.Name, ".")
		quotedValue := `"` + value + `"`
		if _, isBool := k.Value.(bool); isBool {
			quotedValue = value
		}
		yaml := section + ": " + quotedValue
		if nested {
			yaml = section + ": {" + leaf + ": " + quotedValue + "}"
		}
		set := map[string]string{k.Env(): value}
		maps.Copy(set, env)
		byFile, err1 := loadEnv(t, yaml, env)
		byEnv, err2 := loadEnv(t, "", set)
		byFlag, err3 := loadEnv(t, "", env, "--"+k.Flag()+"="+value)
		for i, got := range []Loaded{byFile, byEnv, byFlag} {
			if err := []error{err1, err2, err3}[i]; err != nil {
				t.Errorf("%s: %v", k.Name, err)
			} else if sourceOf(got, k.Name) != []string{"file", "env", "flag"}[i] {
				t.Errorf("%s came from %s", k.Name, sourceOf(got, k.Name))
			}
		}
		if diff := cmp.Diff(byFile.Config, byEnv.Config) + cmp.Diff(byEnv.Config, byFlag.Config); diff != "" {
			t.Errorf("%s differs by its source:\n%s", k.Name, diff)
		}
		if def, err := loadEnv(t, "", env); err != nil || cmp.Equal(def.Config, byEnv.Config) {
			t.Errorf("%s = %s changed nothing (%v)", k.Name, value, err)
		}
	}
}

func TestLabelsKeepTheirNames(t *testing.T) {
	t.Parallel()
	got, err := loadEnv(t, "labels: {topology.kubernetes.io/Zone: a, rack: 2}", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"rack=2", "topology.kubernetes.io/Zone=a"}
	if diff := cmp.Diff(want, got.Labels); diff != "" {
		t.Error(diff)
	}
}

func TestConfigProblems(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, yaml string
		want       []string // each in the error
	}{
		{"unknown key in a section", "log: {level: info}\ngossip:\n  # hosts\n  jion: []\n", []string{`seeder.yaml, line 4: unknown key "gossip.jion"; did you mean gossip.join?`}},
		{"unknown key", "gosip: {bind: x}", []string{`line 1: unknown key "gosip.bind"`, "did you mean gossip.bind"}},
		{"unknown key without its section", "upload_limit: 5MiB", []string{"upload_limit", "did you mean transfer.upload_limit"}},
		{"wrong case", "Node_Name: a", []string{"Node_Name", "did you mean node_name"}},
		{"nothing near", "zzzzzzzzzzzzzzzz: 1", []string{`unknown key "zzzzzzzzzzzzzzzz"`}},
		{"key twice", "node_name: a\nnode_name: b", []string{"already defined"}},
		{"a tab", "log:\n\tlevel: debug\n", []string{"line 2 begins with a tab: YAML takes spaces only"}},
		{"no mapping", "- a\n- b", []string{"not a YAML mapping"}},
		{"section as text", "gossip: hello", []string{"unknown key", "gossip"}},
		{"bool", "images: {pin: perhaps}", []string{"images.pin", "perhaps", "true or false"}},
		{"int", "images: {keep_previous: many}", []string{"images.keep_previous", "many", "whole number"}},
		{"negative", "images: {keep_previous: -1}", []string{"images.keep_previous", "-1", "0 to"}},
		{"size", "transfer: {upload_limit: fast}", []string{"transfer.upload_limit", "fast", "50MiB"}},
		{"negative size", "transfer: {upload_limit: -5}", []string{"transfer.upload_limit", "-5"}},
		{"address without port", "gossip: {bind: 10.0.0.1}", []string{"gossip.bind", "10.0.0.1", "ip:port"}},
		{"port too large", "transfer: {bind: \"0.0.0.0:99999\"}", []string{"transfer.bind", "99999"}},
		{"same port twice", "transfer: {bind: \"0.0.0.0:7950\"}", []string{"transfer.bind", "gossip.bind", "its own"}},
		{"advertise all", "gossip: {advertise: 0.0.0.0}", []string{"gossip.advertise", "0.0.0.0", "no other host"}},
		{"advertise all of IPv6", "gossip: {advertise: \"::\"}", []string{"gossip.advertise", "::", "no other host"}},
		{"advertise loopback", "gossip: {advertise: 127.0.0.1}", []string{"gossip.advertise", "127.0.0.1", "no other host"}},
		{"advertise link-local", "transfer: {advertise: 169.254.1.1}", []string{"transfer.advertise", "169.254.1.1", "no other host"}},
		{"advertise half an address", "gossip: {advertise: 10.0.0}", []string{"gossip.advertise", "10.0.0", "CIDR"}},
		{"advertise a long name", "gossip: {advertise: \"interface-of-which\"}", []string{"gossip.advertise", "an interface of it, e.g. eth1"}},
		{"a registry for others", "registry: {bind: \"10.0.0.1:7953\"}", []string{"registry.bind", "10.0.0.1:7953", "loopback", "127.0.0.1:7953"}},
		{"push without a registry", "registry: {push: true}", []string{"registry.push", "registry.bind", "127.0.0.1:7953"}},
		{"a registry everywhere", "registry: {bind: \":7953\"}", []string{"registry.bind", "loopback"}},
		{"the port of the page", "registry: {bind: \"127.0.0.1:7952\"}", []string{"registry.bind", "http.bind has the same port"}},
		{"http without an address", "http: {bind: \":7952\"}", []string{"http.bind", ":7952", "127.0.0.1:7952", "0.0.0.0:7952", "no secret"}},
		{"join", "gossip: {join: [\"a b\"]}", []string{"gossip.join", "a b", "host:port"}},
		{"join port", "gossip: {join: [\"host:0\"]}", []string{"gossip.join", "host:0"}},
		{"join at the port of packets", "gossip: {join: [\"host:7950\"]}", []string{"gossip.join", "host:7950", "transfer port"}},
		{"relative path", "data_dir: data", []string{"data_dir", `"data"`, "absolute"}},
		{"long socket", "api: {socket: /" + strings.Repeat("x", 120) + "}", []string{"api.socket", "at most", "shorter"}},
		{"containerd", "containerd: {address: k3s}", []string{"containerd.address", "auto", "embedded"}},
		{"pattern", "images: {accept: [\"[\"]}", []string{"images.accept", "pattern"}},
		{"cache", "transfer: {cache: much}", []string{"transfer.cache", "much"}},
		{"deltas", "transfer: {deltas: sometimes}", []string{"transfer.deltas", "sometimes", "auto or off"}},
		{"min_free", "images: {min_free: 200%}", []string{"images.min_free", "200%"}},
		{"rate that is not meant", "transfer: {upload_limit: 50B}", []string{"transfer.upload_limit", "50", "50MiB", "64KiB"}},
		{"rate without a unit", "transfer: {download_limit: 50}", []string{"transfer.download_limit", "50MiB"}},
		{"size without a unit", "images: {min_free: 10}", []string{"images.min_free", "10%", "5GiB"}},
		{"pattern without a tag", "images: {accept: [app]}", []string{"images.accept", `"app:*"`}},
		{"pattern in upper case", "images: {auto: [local, \"App:*\"]}", []string{"images.auto", "App:*", "lower case"}},
		{"excluded node id", "announcers: [\"!me\"]", []string{"announcers", `"!me"`}},
		{"node id", "announcers: [me]", []string{"announcers", `"me"`, "seeder status"}},
		{"label", "labels: [zone]", []string{"labels", "zone", "key=value"}},
		{"node name", "node_name: \"a b\"", []string{"node_name", "a b", "letters"}},
		{"log level", "log: {level: loud}", []string{"log.level", "loud", "debug"}},
		{"log format", "log: {format: xml}", []string{"log.format", "xml", "json"}},
		{"all at once", "node_nam: a\nlog: {level: loud}\ngossip: {bind: here}", []string{"3 problems", "node_nam", "log.level", "gossip.bind"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := loadEnv(t, tc.yaml, nil)
			if err == nil {
				t.Fatal("no error")
			}
			if code := cli.ExitCode(err); code != cli.ExitUsage {
				t.Errorf("exit code %d, want %d", code, cli.ExitUsage)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in: %v", want, err)
				}
			}
		})
	}
}

func TestUnknownEnvironmentIsNoted(t *testing.T) {
	t.Parallel()
	got, err := loadEnv(t, "", map[string]string{"SEEDER_GOSIP_BIND": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "did you mean SEEDER_GOSSIP_BIND") {
		t.Errorf("warnings %q", got.Warnings)
	}
}

func TestParseBytes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"0": 0, "1024B": 1024, "50MiB": 50 << 20, "50MB": 50e6, "1.5GiB": 3 << 29, "10 kB": 10_000,
		"": -1, "MiB": -1, "-5": -1, "5 parsecs": -1, "99999999999999999999999": -1,
	} {
		got, err := parseBytes(in)
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
}

// FuzzParseConfigFile: no file makes the program panic.
func FuzzParseConfigFile(f *testing.F) {
	for _, seed := range []string{"", "gossip: {bind: x}", "a: &a [*a]", "labels: {a: [b]}", "? [a]: b", "gossip:\n  join: [1, ~]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Problems
		values := parseFile("seeder.yaml", data, &p)
		for _, k := range Keys() {
			if raw, ok := values[k.Name]; ok {
				_, _ = k.parse(raw)
			}
		}
	})
}
