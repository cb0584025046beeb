package k3s

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
	"seeder/cmd/seeder/internal/k3s/k3stest"
)

// fullToken is a token as k3s writes it.
func fullToken(user, password string) string {
	return "K10" + strings.Repeat("a1", 32) + "::" + user + ":" + password
}

// onOtherHosts is a configuration that needs a secret.
var onOtherHosts = config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}, Transfer: config.Transfer{Bind: "0.0.0.0:7951"}}

// TestK3sSecret: servers and agents derive the same secret wherever they have the
// token, and none that says anything of it.
func TestK3sSecret(t *testing.T) {
	t.Parallel()
	var load SecretLoader // derives each secret once
	const (
		server = "/var/lib/rancher/k3s/server/"
		env    = "/etc/systemd/system/k3s-agent.service.env"
		unit   = "/etc/systemd/system/k3s-agent.service"
		conf   = "/etc/rancher/k3s/config.yaml"
	)
	want, err := load.Load(onOtherHosts, k3stest.HostWith(t, map[string]string{server + "token": fullToken("server", k3stest.TokenPassword) + "\n"}))
	if err != nil || len(want.Secrets) != 1 || len(want.Secrets[0]) != 32 || strings.Contains(k3stest.TokenPassword, string(want.Secrets[0])) {
		t.Fatalf("%v %v", want, err)
	}
	for name, files := range map[string]map[string]string{
		"server with all links": {server + "token": fullToken("server", k3stest.TokenPassword), server + "node-token": fullToken("server", k3stest.TokenPassword), server + "agent-token": fullToken("node", k3stest.TokenPassword)},
		"server whose agents have their own": {server + "token": fullToken("server", k3stest.OtherPassword), server + "node-token": fullToken("server", k3stest.OtherPassword),
			server + "agent-token": fullToken("node", k3stest.TokenPassword)},
		"server whose configuration is strange": {server + "token": fullToken("server", k3stest.TokenPassword), conf: "token: 123\n"},
		"env, bare":                             {env: "K3S_TOKEN=" + k3stest.TokenPassword + "\nK3S_URL=https://10.0.0.1:6443\n"},
		"env, single quotes":                    {env: "K3S_URL='https://10.0.0.1:6443'\nK3S_TOKEN='" + fullToken("server", k3stest.TokenPassword) + "'\n"},
		"env, double quotes":                    {env: `export K3S_TOKEN="` + k3stest.TokenPassword + `" # the token` + "\n"},
		"env, in pieces":                        {env: `K3S_TOKEN=0123\4'56789abcdef0123'"456789abcdef"` + "\n"},
		"env, CRLF and comment":                 {env: "# K3S_TOKEN=old\r\n; K3S_TOKEN=older\r\n\r\n K3S_TOKEN='" + k3stest.TokenPassword + "'\r\n"},
		"env, last one wins":                    {env: "K3S_TOKEN=" + k3stest.OtherPassword + "\nK3S_TOKEN=" + k3stest.TokenPassword + "\n"},
		"env, others unclear":                   {env: "K3S_NODE_NAME='it is\nHTTP_PROXY=a b c\nK3S_TOKEN=" + k3stest.TokenPassword + "\n"},
		"env, file":                             {env: "K3S_TOKEN_FILE=/root/the-token\n", "/root/the-token": fullToken("node", k3stest.TokenPassword) + "\n"},
		"default file":                          {"/etc/default/k3s-agent": "K3S_TOKEN=" + k3stest.TokenPassword},
		"config":                                {conf: "server: https://10.0.0.1:6443\ntoken: " + k3stest.TokenPassword + "\n"},
		"config, file":                          {conf: "token-file: /root/the-token\n", "/root/the-token": k3stest.TokenPassword},
		"config, in a part":                     {conf: "token: " + k3stest.OtherPassword, "/etc/rancher/k3s/config.yaml.d/10-token.yaml": "token: '" + k3stest.TokenPassword + "'\n"},
		"config, own for agents":                {conf: "token: " + k3stest.OtherPassword + "\nagent-token: " + k3stest.TokenPassword + "\n"},
		"config, other data dir":                {conf: "data-dir: /mnt/k3s\n", "/mnt/k3s/server/node-token": fullToken("server", k3stest.TokenPassword)},
		"unit":                                  {unit: "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--token' \\\n\t'" + k3stest.TokenPassword + "' \\\n\n"},
		"unit, joined":                          {unit: "[Service]\nExecStart=/usr/local/bin/k3s agent --server https://x --token=" + k3stest.TokenPassword + "\n"},
		"unit, short":                           {unit: "ExecStart = /usr/local/bin/k3s agent -t " + k3stest.TokenPassword + "\n"},
		"the same twice":                        {conf: "token: " + fullToken("server", k3stest.TokenPassword), env: "K3S_TOKEN=" + k3stest.TokenPassword},
		"unit, dropped in":                      {"/etc/systemd/system/k3s-agent.service.d/10-token.conf": "[Service]\nExecStart=\nExecStart=/usr/local/bin/k3s agent --token " + k3stest.TokenPassword + "\n"},
		"unit, environment":                     {unit: "[Service]\nEnvironment=HTTP_PROXY=http://x \"K3S_TOKEN=" + k3stest.TokenPassword + "\"\nExecStart=/usr/local/bin/k3s agent\n"},
		"unit, environment dropped in":          {unit: "ExecStart=/usr/local/bin/k3s agent\n", "/etc/systemd/system/k3s-agent.service.d/x.conf": "[Service]\nEnvironment=K3S_TOKEN=" + k3stest.TokenPassword + "\n"},
		"unit, its own environment file":        {unit: "EnvironmentFile=-/opt/k3s/%N.vars\nExecStart=/usr/local/bin/k3s agent\n", "/opt/k3s/k3s-agent.vars": "K3S_TOKEN='" + k3stest.TokenPassword + "'\n"},
		"unit under another name":               {"/etc/systemd/system/k3s-edge.service": "ExecStart=/usr/local/bin/k3s agent --token '" + k3stest.TokenPassword + "'\n"},
		"OpenRC":                                {"/etc/rancher/k3s/k3s-agent.env": "export K3S_TOKEN='" + k3stest.TokenPassword + "'\n"},
		"config, named in the unit":             {unit: "ExecStart=/usr/local/bin/k3s agent -c /opt/k3s.yaml\n", "/opt/k3s.yaml": "token: " + k3stest.TokenPassword, conf: "token: " + k3stest.OtherPassword},
		"config, named in the environment":      {env: "K3S_CONFIG_FILE=/opt/k3s.yaml\n", "/opt/k3s.yaml": "token: " + k3stest.OtherPassword, "/opt/k3s.yaml.d/x.YML": "token: " + k3stest.TokenPassword},
		"config, added to":                      {conf: "token: " + k3stest.OtherPassword, "/etc/rancher/k3s/config.yaml.d/10.yaml": "token+: " + k3stest.TokenPassword + "\n"},
		"config, a list":                        {conf: "token: [" + k3stest.OtherPassword + ", " + k3stest.TokenPassword + "]\n"},
		"config, parts alone":                   {"/etc/rancher/k3s/config.yaml.d/10.yml": "token: " + k3stest.TokenPassword + "\n", "/etc/rancher/k3s/config.yaml.d/20.yaml.off": "token: " + k3stest.OtherPassword},
		"server, own for agents in the unit":    {"/etc/systemd/system/k3s.service": "ExecStart=/usr/local/bin/k3s server '--token' '" + k3stest.OtherPassword + "' --agent-token=" + k3stest.TokenPassword + "\n"},
		"server, own for agents in its env":     {"/etc/systemd/system/k3s.service.env": "K3S_TOKEN=" + k3stest.OtherPassword + "\nK3S_AGENT_TOKEN=" + k3stest.TokenPassword + "\n"},
		"server, own for agents in a file":      {"/etc/systemd/system/k3s.service.env": "K3S_AGENT_TOKEN_FILE=/root/agents\n", "/root/agents": fullToken("node", k3stest.TokenPassword), conf: "token: " + k3stest.OtherPassword},
		"agent that was a server of another":    {unit: "ExecStart=/usr/local/bin/k3s agent\n", env: "K3S_TOKEN=" + k3stest.TokenPassword, server + "token": fullToken("server", k3stest.OtherPassword)},
		"data dir in the environment":           {env: "K3S_DATA_DIR=/mnt/k3s\n", "/mnt/k3s/server/token": fullToken("server", k3stest.TokenPassword)},
		"rke2 server":                           {"/var/lib/rancher/rke2/server/node-token": fullToken("server", k3stest.TokenPassword)},
		"rke2 agent":                            {"/etc/rancher/rke2/config.yaml": "token: " + k3stest.TokenPassword},
		"rke2 env":                              {"/etc/default/rke2-agent": "RKE2_TOKEN=" + k3stest.TokenPassword},
	} {
		got, err := load.Load(onOtherHosts, k3stest.HostWith(t, files))
		if err != nil || !got.Secrets.Equal(want.Secrets) || got.Alone {
			t.Errorf("%s: another secret: %v %v", name, got.Source, err)
		}
		if strings.Contains(got.Source+got.Note, k3stest.TokenPassword) || !strings.Contains(got.Source, "the token in ") {
			t.Errorf("%s: source %q, note %q", name, got.Source, got.Note)
		}
	}
	other, err := load.Load(onOtherHosts, k3stest.HostWith(t, map[string]string{env: "K3S_TOKEN=" + k3stest.OtherPassword}))
	if err != nil || other.Secrets.Equal(want.Secrets) {
		t.Errorf("another token makes the same secret: %v", err)
	}
	mine := map[string]string{env: "K3S_TOKEN=" + k3stest.OtherPassword, config.DefaultSecretFile: "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA\n"}
	if got, err := load.Load(onOtherHosts, k3stest.HostWith(t, mine)); err != nil || string(got.Secrets[0]) != "Bw4VHCMqMTg_Rk1UW2JpcHd-hYyTmqGor7a9xMvS2eA" {
		t.Errorf("the secret file does not win: %v %v", got, err)
	}
}

// TestK3sTokenOfShellCharacters: what ends a command of a shell is part of a token, since
// systemd, which reads these files, runs no shell.
func TestK3sTokenOfShellCharacters(t *testing.T) {
	t.Parallel()
	var load SecretLoader
	const odd = "0123456789abcdef&0123|4567;89<ab>cd(ef)"
	want, err := load.Load(onOtherHosts, k3stest.HostWith(t, map[string]string{"/var/lib/rancher/k3s/server/token": fullToken("server", odd) + "\n"}))
	if err != nil || len(want.Secrets) != 1 {
		t.Fatalf("%v %v", want, err)
	}
	for path, text := range map[string]string{
		"/etc/systemd/system/k3s-agent.service.env": "K3S_TOKEN=" + odd + "\n",
		"/etc/systemd/system/k3s-agent.service":     "[Service]\nExecStart=/usr/local/bin/k3s agent --token " + odd + "\n",
	} {
		got, err := load.Load(onOtherHosts, k3stest.HostWith(t, map[string]string{path: text}))
		if err != nil || !got.Secrets.Equal(want.Secrets) {
			t.Errorf("%s: another secret: %v", path, err)
		}
	}
}

// TestK3sTokensThatDoNotDo: each is an error that says where it is and what to do,
// and nothing of it.
func TestK3sTokensThatDoNotDo(t *testing.T) {
	t.Parallel()
	const env, conf, unit = "/etc/systemd/system/k3s-agent.service.env", "/etc/rancher/k3s/config.yaml", "/etc/systemd/system/k3s-agent.service"
	for name, tc := range map[string]struct {
		files map[string]string
		where string
		why   string
	}{
		"bootstrap":            {map[string]string{env: "K3S_TOKEN=abcdef.0123456789abcdef"}, env, "bootstrap token"},
		"full bootstrap":       {map[string]string{env: "K3S_TOKEN=K10" + strings.Repeat("a1", 32) + "::abcdef.0123456789abcdef"}, env, "bootstrap token"},
		"short":                {map[string]string{env: "K3S_TOKEN=sesame"}, env, "6 bytes, at least 16"},
		"short in full":        {map[string]string{env: "K3S_TOKEN=" + fullToken("server", "sesame")}, env, "6 bytes, at least 16"},
		"no hash":              {map[string]string{env: "K3S_TOKEN=K10sesame::server:" + k3stest.TokenPassword}, env, "format is unknown"},
		"no user":              {map[string]string{env: "K3S_TOKEN=K10" + strings.Repeat("a1", 32) + "::sesame0123456789"}, env, "format is unknown"},
		"no password":          {map[string]string{env: "K3S_TOKEN=" + fullToken("sesame", "")}, env, "format is unknown"},
		"two words":            {map[string]string{env: "K3S_TOKEN=sesame " + k3stest.TokenPassword}, env, "not one word"},
		"half quoted":          {map[string]string{env: "K3S_TOKEN='sesame" + k3stest.TokenPassword}, env, "quotes do not end"},
		"number":               {map[string]string{conf: "token: 12345678901234567890"}, conf, "put it in quotes"},
		"no mapping":           {map[string]string{conf: "sesame " + k3stest.TokenPassword}, conf, "not a YAML mapping"},
		"file is not there":    {map[string]string{conf: "token-file: /root/none"}, conf, "/root/none is not there"},
		"expanded":             {map[string]string{unit: "ExecStart=k3s agent --token ${SESAME_0123456789}"}, unit, "which systemd replaces"},
		"environment expanded": {map[string]string{unit: "Environment=K3S_TOKEN=%SESAME_0123456789\nExecStart=k3s agent\n"}, unit, "which systemd replaces"},
		"environment quotes":   {map[string]string{unit: "Environment='K3S_TOKEN=sesame" + k3stest.TokenPassword + "\n"}, unit, "quotes in Environment"},
		"token is a directory": {map[string]string{"/var/lib/rancher/k3s/server/token/x": ""}, "/var/lib/rancher/k3s/server/token", "cannot be read"},
		"config is one":        {map[string]string{conf + "/x": ""}, conf, "cannot be read"},
		"bootstrap in a unit":  {map[string]string{unit: "ExecStart=k3s agent --token abcdef.0123456789abcdef\n"}, unit, "bootstrap token"},
		"different drop-in":    {map[string]string{unit: "ExecStart=k3s agent --token " + k3stest.TokenPassword + "\n", unit + ".d/a.conf": "Environment=K3S_TOKEN=" + k3stest.OtherPassword + "\n"}, unit + ".d/a.conf", "another one than that in "},
		"unit half quoted":     {map[string]string{unit: "ExecStart=k3s agent --token 'sesame" + k3stest.TokenPassword + "\n"}, unit, "quotes in ExecStart"},
		"different":            {map[string]string{conf: "token: " + k3stest.TokenPassword, env: "K3S_TOKEN=" + k3stest.OtherPassword}, conf, "another one than that in "},
		"lines":                {map[string]string{"/var/lib/rancher/k3s/server/token": k3stest.TokenPassword + "\n" + k3stest.OtherPassword}, "/var/lib/rancher/k3s/server/token", "white space"},
		"too large":            {map[string]string{"/var/lib/rancher/k3s/server/token": strings.Repeat("x", 1<<20)}, "/var/lib/rancher/k3s/server/token", "cannot be read"},
	} {
		root := k3stest.HostWith(t, tc.files)
		got, err := LoadSecrets(onOtherHosts, root)
		if err == nil || cli.ExitCode(err) != cli.ExitUsage {
			t.Errorf("%s: %v %v, want an error of usage", name, got.Source, err)
			continue
		}
		clitest.WantAll(t, err.Error(), filepath.Join(root, tc.where), tc.why, "seeder secret generate > /etc/seeder/secret")
		for _, secret := range []string{k3stest.TokenPassword, k3stest.OtherPassword, "sesame", "SESAME", "abcdef.0123456789abcdef", "12345678901234567890"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error tells it: %v", name, err)
			}
		}
	}
	for name, files := range map[string]map[string]string{
		"no k3s":        nil,
		"no token":      {"/etc/rancher/k3s/config.yaml": "disable: [traefik]\nnode-label: [a=b]\n", unit: "ExecStart=/usr/local/bin/k3s server\n", env: "\n"},
		"empty token":   {env: "K3S_TOKEN=''\n", "/var/lib/rancher/k3s/server/token": "\n"},
		"commented out": {"/etc/rancher/k3s/config.yaml": "# token: " + k3stest.TokenPassword + "\n"},
	} {
		if got, err := LoadSecrets(onOtherHosts, k3stest.HostWith(t, files)); err == nil || !strings.Contains(err.Error(), "no secret: ") {
			t.Errorf("%s: %v %v, want none", name, got.Source, err)
		}
	}
}

// TestK3sJoin: without gossip.join an agent joins the servers that it knows at that
// moment.
func TestK3sJoin(t *testing.T) {
	t.Parallel()
	const file = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json"
	root := k3stest.HostWith(t, map[string]string{file: `{"ServerURL":"https://10.0.0.1:6443","ServerAddresses":["10.0.0.1:6443","[fd00::2]:6443","server3.example:6443","10.0.0.1:6443","127.0.0.1:6443","bad host:1"],"Listener":null}`})
	want := []string{"10.0.0.1", "fd00::2", "server3.example"}
	if got, from := Joins(onOtherHosts, root); !slices.Equal(got, want) || from != filepath.Join(root, file) {
		t.Errorf("%q from %q, want %q", got, from, want)
	}
	if err := os.WriteFile(filepath.Join(root, file), []byte(`{"ServerURL":"https://10.0.0.9:6443","ServerAddresses":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := Joins(onOtherHosts, root); !slices.Equal(got, []string{"10.0.0.9"}) {
		t.Errorf("after it changed: %q", got)
	}
	set := onOtherHosts
	set.Gossip.Join = []string{"10.1.1.1:7950"}
	if got, from := Joins(set, root); !slices.Equal(got, set.Gossip.Join) || from != "" {
		t.Errorf("with gossip.join: %q from %q", got, from)
	}
	alone := config.Config{Gossip: config.Gossip{Bind: "127.0.0.1:7950"}}
	if got, _ := Joins(alone, root); len(got) != 0 {
		t.Errorf("on loopback: %q", got)
	}
	rke2 := k3stest.HostWith(t, map[string]string{"/var/lib/rancher/rke2/agent/etc/rke2-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.7:9345"]}`})
	if got, _ := Joins(onOtherHosts, rke2); !slices.Equal(got, []string{"10.0.0.7"}) {
		t.Errorf("rke2: %q", got)
	}
	for _, bad := range []string{"", "[]", `{"ServerAddresses":{}}`, `{"ServerURL":":::"}`} {
		if got := balancedHosts([]byte(bad)); len(got) != 0 {
			t.Errorf("%q: %q", bad, got)
		}
	}
	many, _ := json.Marshal(map[string]any{"ServerAddresses": strings.Fields(strings.Repeat("a b c d e f g h ", 1000))})
	if got := balancedHosts(many); len(got) != 8 {
		t.Errorf("%q", got)
	}
}

// TestConfigShowsWhatIsFound: config show says where secret and join come from, and
// nothing of the secret.
func TestConfigShowsWhatIsFound(t *testing.T) {
	t.Parallel()
	root := k3stest.HostWith(t, map[string]string{
		"/etc/rancher/k3s/config.yaml":                                "token: " + k3stest.TokenPassword,
		"/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.1:6443"]}`,
	})
	cfg, err := configtest.Load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	NoteFound(t.Context(), &cfg, root)
	b, err := json.Marshal(cfg.Settings)
	if err != nil {
		t.Fatal(err)
	}
	clitest.WantAll(t, string(b), `"default (the token in `+root+`/etc/rancher/k3s/config.yaml)"`, `{"key":"gossip.join","value":["10.0.0.1"],"source":"default (the servers in `+root)
	if strings.Contains(string(b), k3stest.TokenPassword) {
		t.Errorf("the token is told: %s", b)
	}
	NoteFound(t.Context(), &cfg, t.TempDir())
	if b, err = json.Marshal(cfg.Settings); err != nil {
		t.Fatal(err)
	}
	clitest.WantAll(t, string(b), "none that can be used")
}

func FuzzParseToken(f *testing.F) {
	f.Add(fullToken("server", k3stest.TokenPassword))
	f.Add(k3stest.TokenPassword)
	f.Add("abcdef.0123456789abcdef")
	f.Add(fullToken("", "a:b::c0123456789abcdef"))
	f.Fuzz(func(t *testing.T, token string) {
		password, err := parseToken(token)
		if err != nil {
			if password != nil || (len(token) > 8 && strings.Contains(err.Error(), token)) {
				t.Fatalf("%q with %v", password, err)
			}
			return
		}
		if password == nil {
			return
		}
		if len(password) < 16 || bootstrap.Match(password) || !strings.HasSuffix(strings.TrimSpace(token), string(password)) {
			t.Fatalf("%q makes %q", token, password)
		}
		// The same password in full is the same.
		if again, err := parseToken(fullToken("node", string(password))); err != nil || string(again) != string(password) {
			t.Fatalf("%q in full makes %q %v", password, again, err)
		}
	})
}

func FuzzParseEnvFile(f *testing.F) {
	f.Add([]byte("# x\r\nexport K3S_TOKEN='a\"b'\"c\\\"d\"\\e # f\r\n"), "word")
	f.Add([]byte("K3S_TOKEN_FILE=/x\n"), "it's # \"quoted\" \\ here")
	f.Fuzz(func(t *testing.T, b []byte, value string) {
		if values, err := parseEnvFile(b, "k3s"); err == nil {
			for name := range values {
				if k3sOptions[name] != name {
					t.Fatalf("option %q", name)
				}
			}
		}
		// What install.sh writes is read again.
		if strings.ContainsAny(value, "\r\n") {
			return
		}
		quoted := "K3S_TOKEN='" + strings.ReplaceAll(value, "'", `'\''`) + "'\n"
		if got, err := parseEnvFile([]byte(quoted), "k3s"); err != nil || got["token"] != value {
			t.Fatalf("%q is read as %q %v", quoted, got["token"], err)
		}
	})
}

func FuzzParseUnit(f *testing.F) {
	f.Add([]byte("[Service]\nExecStart=/usr/local/bin/k3s \\\n agent \\\n '--token' 'x'\n"))
	f.Add([]byte("ExecStart=k3s --token=\"a b\" -t"))
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := parseUnit(b, "k3s")
		if err != nil && len(values) > 0 {
			t.Fatalf("%q with %v", values, err)
		}
		for _, v := range values {
			if strings.ContainsAny(v, "$%") {
				t.Fatalf("%q", v)
			}
		}
	})
}

func FuzzParseK3sConfig(f *testing.F) {
	f.Add([]byte("token: x\ndata-dir: /y\nnode-label: [a]\n"))
	f.Add([]byte("token: 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := parseK3sConfig(b)
		if err != nil && values != nil {
			t.Fatalf("%q with %v", values, err)
		}
	})
}

func FuzzBalancedHosts(f *testing.F) {
	f.Add([]byte(`{"ServerURL":"https://10.0.0.1:6443","ServerAddresses":["[fd00::1]:6443","a"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts := balancedHosts(b)
		if len(hosts) > maxK3sServers {
			t.Fatalf("%d hosts", len(hosts))
		}
		for _, h := range hosts {
			if _, err := config.JoinAddress(h, config.DefaultTransferPort); err != nil {
				t.Fatalf("host %q: %v", h, err)
			}
		}
	})
}
