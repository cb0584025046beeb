package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/config/configtest"
)

const (
	tokenPassword = "0123456789abcdef0123456789abcdef"
	otherPassword = "fedcba9876543210fedcba9876543210"
)

// fullToken is a token as k3s writes it.
func fullToken(user, password string) string {
	return "K10" + strings.Repeat("a1", 32) + "::" + user + ":" + password
}

// hostWith is the root of a host with these files.
func hostWith(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// onOtherHosts is a configuration that needs a secret.
var onOtherHosts = config.Config{Gossip: config.Gossip{Bind: "0.0.0.0:7950"}, Transfer: config.Transfer{Bind: "0.0.0.0:7951"}}

// TestK3sSecret: servers and agents derive the same secret wherever they have the
// token, and none that says anything of it.
func TestK3sSecret(t *testing.T) {
	t.Parallel()
	const (
		server = "/var/lib/rancher/k3s/server/"
		env    = "/etc/systemd/system/k3s-agent.service.env"
		unit   = "/etc/systemd/system/k3s-agent.service"
		conf   = "/etc/rancher/k3s/config.yaml"
	)
	want, err := loadSecrets(onOtherHosts, hostWith(t, map[string]string{server + "token": fullToken("server", tokenPassword) + "\n"}))
	if err != nil || len(want.secrets) != 1 || len(want.secrets[0]) != 32 || strings.Contains(tokenPassword, string(want.secrets[0])) {
		t.Fatalf("%v %v", want, err)
	}
	for name, files := range map[string]map[string]string{
		"server with all links": {server + "token": fullToken("server", tokenPassword), server + "node-token": fullToken("server", tokenPassword), server + "agent-token": fullToken("node", tokenPassword)},
		"server whose agents have their own": {server + "token": fullToken("server", otherPassword), server + "node-token": fullToken("server", otherPassword),
			server + "agent-token": fullToken("node", tokenPassword)},
		"server whose configuration is strange": {server + "token": fullToken("server", tokenPassword), conf: "token: 123\n"},
		"env, bare":                             {env: "K3S_TOKEN=" + tokenPassword + "\nK3S_URL=https://10.0.0.1:6443\n"},
		"env, single quotes":                    {env: "K3S_URL='https://10.0.0.1:6443'\nK3S_TOKEN='" + fullToken("server", tokenPassword) + "'\n"},
		"env, double quotes":                    {env: `export K3S_TOKEN="` + tokenPassword + `" # the token` + "\n"},
		"env, in pieces":                        {env: `K3S_TOKEN=0123\4'56789abcdef0123'"456789abcdef"` + "\n"},
		"env, CRLF and comment":                 {env: "# K3S_TOKEN=old\r\n; K3S_TOKEN=older\r\n\r\n K3S_TOKEN='" + tokenPassword + "'\r\n"},
		"env, last one wins":                    {env: "K3S_TOKEN=" + otherPassword + "\nK3S_TOKEN=" + tokenPassword + "\n"},
		"env, others unclear":                   {env: "K3S_NODE_NAME='it is\nHTTP_PROXY=a b c\nK3S_TOKEN=" + tokenPassword + "\n"},
		"env, file":                             {env: "K3S_TOKEN_FILE=/root/the-token\n", "/root/the-token": fullToken("node", tokenPassword) + "\n"},
		"default file":                          {"/etc/default/k3s-agent": "K3S_TOKEN=" + tokenPassword},
		"config":                                {conf: "server: https://10.0.0.1:6443\ntoken: " + tokenPassword + "\n"},
		"config, file":                          {conf: "token-file: /root/the-token\n", "/root/the-token": tokenPassword},
		"config, in a part":                     {conf: "token: " + otherPassword, "/etc/rancher/k3s/config.yaml.d/10-token.yaml": "token: '" + tokenPassword + "'\n"},
		"config, own for agents":                {conf: "token: " + otherPassword + "\nagent-token: " + tokenPassword + "\n"},
		"config, other data dir":                {conf: "data-dir: /mnt/k3s\n", "/mnt/k3s/server/node-token": fullToken("server", tokenPassword)},
		"unit":                                  {unit: "[Service]\nExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--token' \\\n\t'" + tokenPassword + "' \\\n\n"},
		"unit, joined":                          {unit: "[Service]\nExecStart=/usr/local/bin/k3s agent --server https://x --token=" + tokenPassword + "\n"},
		"unit, short":                           {unit: "ExecStart = /usr/local/bin/k3s agent -t " + tokenPassword + "\n"},
		"the same twice":                        {conf: "token: " + fullToken("server", tokenPassword), env: "K3S_TOKEN=" + tokenPassword},
		"unit, dropped in":                      {"/etc/systemd/system/k3s-agent.service.d/10-token.conf": "[Service]\nExecStart=\nExecStart=/usr/local/bin/k3s agent --token " + tokenPassword + "\n"},
		"unit, environment":                     {unit: "[Service]\nEnvironment=HTTP_PROXY=http://x \"K3S_TOKEN=" + tokenPassword + "\"\nExecStart=/usr/local/bin/k3s agent\n"},
		"unit, environment dropped in":          {unit: "ExecStart=/usr/local/bin/k3s agent\n", "/etc/systemd/system/k3s-agent.service.d/x.conf": "[Service]\nEnvironment=K3S_TOKEN=" + tokenPassword + "\n"},
		"unit, its own environment file":        {unit: "EnvironmentFile=-/opt/k3s/%N.vars\nExecStart=/usr/local/bin/k3s agent\n", "/opt/k3s/k3s-agent.vars": "K3S_TOKEN='" + tokenPassword + "'\n"},
		"unit under another name":               {"/etc/systemd/system/k3s-edge.service": "ExecStart=/usr/local/bin/k3s agent --token '" + tokenPassword + "'\n"},
		"OpenRC":                                {"/etc/rancher/k3s/k3s-agent.env": "export K3S_TOKEN='" + tokenPassword + "'\n"},
		"config, named in the unit":             {unit: "ExecStart=/usr/local/bin/k3s agent -c /opt/k3s.yaml\n", "/opt/k3s.yaml": "token: " + tokenPassword, conf: "token: " + otherPassword},
		"config, named in the environment":      {env: "K3S_CONFIG_FILE=/opt/k3s.yaml\n", "/opt/k3s.yaml": "token: " + otherPassword, "/opt/k3s.yaml.d/x.YML": "token: " + tokenPassword},
		"config, added to":                      {conf: "token: " + otherPassword, "/etc/rancher/k3s/config.yaml.d/10.yaml": "token+: " + tokenPassword + "\n"},
		"config, a list":                        {conf: "token: [" + otherPassword + ", " + tokenPassword + "]\n"},
		"config, parts alone":                   {"/etc/rancher/k3s/config.yaml.d/10.yml": "token: " + tokenPassword + "\n", "/etc/rancher/k3s/config.yaml.d/20.yaml.off": "token: " + otherPassword},
		"server, own for agents in the unit":    {"/etc/systemd/system/k3s.service": "ExecStart=/usr/local/bin/k3s server '--token' '" + otherPassword + "' --agent-token=" + tokenPassword + "\n"},
		"server, own for agents in its env":     {"/etc/systemd/system/k3s.service.env": "K3S_TOKEN=" + otherPassword + "\nK3S_AGENT_TOKEN=" + tokenPassword + "\n"},
		"server, own for agents in a file":      {"/etc/systemd/system/k3s.service.env": "K3S_AGENT_TOKEN_FILE=/root/agents\n", "/root/agents": fullToken("node", tokenPassword), conf: "token: " + otherPassword},
		"agent that was a server of another":    {unit: "ExecStart=/usr/local/bin/k3s agent\n", env: "K3S_TOKEN=" + tokenPassword, server + "token": fullToken("server", otherPassword)},
		"data dir in the environment":           {env: "K3S_DATA_DIR=/mnt/k3s\n", "/mnt/k3s/server/token": fullToken("server", tokenPassword)},
		"rke2 server":                           {"/var/lib/rancher/rke2/server/node-token": fullToken("server", tokenPassword)},
		"rke2 agent":                            {"/etc/rancher/rke2/config.yaml": "token: " + tokenPassword},
		"rke2 env":                              {"/etc/default/rke2-agent": "RKE2_TOKEN=" + tokenPassword},
	} {
		got, err := loadSecrets(onOtherHosts, hostWith(t, files))
		if err != nil || !got.secrets.Equal(want.secrets) || got.alone {
			t.Errorf("%s: another secret: %v %v", name, got.source, err)
		}
		if strings.Contains(got.source+got.note, tokenPassword) || !strings.Contains(got.source, "the token in ") {
			t.Errorf("%s: source %q, note %q", name, got.source, got.note)
		}
	}
	other, err := loadSecrets(onOtherHosts, hostWith(t, map[string]string{env: "K3S_TOKEN=" + otherPassword}))
	if err != nil || other.secrets.Equal(want.secrets) {
		t.Errorf("another token makes the same secret: %v", err)
	}
	mine := map[string]string{env: "K3S_TOKEN=" + otherPassword, config.DefaultSecretFile: "a secret of seeder's own\n"}
	if got, err := loadSecrets(onOtherHosts, hostWith(t, mine)); err != nil || string(got.secrets[0]) != "a secret of seeder's own" {
		t.Errorf("the secret file does not win: %v %v", got, err)
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
		"no hash":              {map[string]string{env: "K3S_TOKEN=K10sesame::server:" + tokenPassword}, env, "unknown form"},
		"no user":              {map[string]string{env: "K3S_TOKEN=K10" + strings.Repeat("a1", 32) + "::sesame0123456789"}, env, "unknown form"},
		"no password":          {map[string]string{env: "K3S_TOKEN=" + fullToken("sesame", "")}, env, "unknown form"},
		"two words":            {map[string]string{env: "K3S_TOKEN=sesame " + tokenPassword}, env, "not one word"},
		"half quoted":          {map[string]string{env: "K3S_TOKEN='sesame" + tokenPassword}, env, "quotes do not end"},
		"number":               {map[string]string{conf: "token: 12345678901234567890"}, conf, "put it in quotes"},
		"no mapping":           {map[string]string{conf: "sesame " + tokenPassword}, conf, "no YAML mapping"},
		"file is not there":    {map[string]string{conf: "token-file: /root/none"}, conf, "/root/none is not there"},
		"expanded":             {map[string]string{unit: "ExecStart=k3s agent --token ${SESAME_0123456789}"}, unit, "which systemd replaces"},
		"environment expanded": {map[string]string{unit: "Environment=K3S_TOKEN=%SESAME_0123456789\nExecStart=k3s agent\n"}, unit, "which systemd replaces"},
		"environment quotes":   {map[string]string{unit: "Environment='K3S_TOKEN=sesame" + tokenPassword + "\n"}, unit, "quotes in Environment"},
		"token is a directory": {map[string]string{"/var/lib/rancher/k3s/server/token/x": ""}, "/var/lib/rancher/k3s/server/token", "cannot be read"},
		"config is one":        {map[string]string{conf + "/x": ""}, conf, "cannot be read"},
		"bootstrap in a unit":  {map[string]string{unit: "ExecStart=k3s agent --token abcdef.0123456789abcdef\n"}, unit, "bootstrap token"},
		"different drop-in":    {map[string]string{unit: "ExecStart=k3s agent --token " + tokenPassword + "\n", unit + ".d/a.conf": "Environment=K3S_TOKEN=" + otherPassword + "\n"}, unit + ".d/a.conf", "another one than that in "},
		"unit half quoted":     {map[string]string{unit: "ExecStart=k3s agent --token 'sesame" + tokenPassword + "\n"}, unit, "quotes in ExecStart"},
		"different":            {map[string]string{conf: "token: " + tokenPassword, env: "K3S_TOKEN=" + otherPassword}, conf, "another one than that in "},
		"lines":                {map[string]string{"/var/lib/rancher/k3s/server/token": tokenPassword + "\n" + otherPassword}, "/var/lib/rancher/k3s/server/token", "white space"},
		"too large":            {map[string]string{"/var/lib/rancher/k3s/server/token": strings.Repeat("x", 1<<20)}, "/var/lib/rancher/k3s/server/token", "cannot be read"},
	} {
		root := hostWith(t, tc.files)
		got, err := loadSecrets(onOtherHosts, root)
		if err == nil || cli.ExitCode(err) != cli.ExitUsage {
			t.Errorf("%s: %v %v, want an error of usage", name, got.source, err)
			continue
		}
		wantAll(t, err.Error(), filepath.Join(root, tc.where), tc.why, "seeder secret generate > /etc/seeder/secret")
		for _, secret := range []string{tokenPassword, otherPassword, "sesame", "SESAME", "abcdef.0123456789abcdef", "12345678901234567890"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error tells it: %v", name, err)
			}
		}
	}
	for name, files := range map[string]map[string]string{
		"no k3s":        nil,
		"no token":      {"/etc/rancher/k3s/config.yaml": "disable: [traefik]\nnode-label: [a=b]\n", unit: "ExecStart=/usr/local/bin/k3s server\n", env: "\n"},
		"empty token":   {env: "K3S_TOKEN=''\n", "/var/lib/rancher/k3s/server/token": "\n"},
		"commented out": {"/etc/rancher/k3s/config.yaml": "# token: " + tokenPassword + "\n"},
	} {
		if got, err := loadSecrets(onOtherHosts, hostWith(t, files)); err == nil || !strings.Contains(err.Error(), "no secret: ") {
			t.Errorf("%s: %v %v, want none", name, got.source, err)
		}
	}
}

// TestK3sJoin: without gossip.join an agent joins the servers that it knows at that
// moment.
func TestK3sJoin(t *testing.T) {
	t.Parallel()
	const file = "/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json"
	root := hostWith(t, map[string]string{file: `{"ServerURL":"https://10.0.0.1:6443","ServerAddresses":["10.0.0.1:6443","[fd00::2]:6443","server3.example:6443","10.0.0.1:6443","127.0.0.1:6443","bad host:1"],"Listener":null}`})
	want := []string{"10.0.0.1", "fd00::2", "server3.example"}
	if got, from := joins(onOtherHosts, root); !slices.Equal(got, want) || from != filepath.Join(root, file) {
		t.Errorf("%q from %q, want %q", got, from, want)
	}
	if err := os.WriteFile(filepath.Join(root, file), []byte(`{"ServerURL":"https://10.0.0.9:6443","ServerAddresses":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := joins(onOtherHosts, root); !slices.Equal(got, []string{"10.0.0.9"}) {
		t.Errorf("after it changed: %q", got)
	}
	set := onOtherHosts
	set.Gossip.Join = []string{"10.1.1.1:7950"}
	if got, from := joins(set, root); !slices.Equal(got, set.Gossip.Join) || from != "" {
		t.Errorf("with gossip.join: %q from %q", got, from)
	}
	alone := config.Config{Gossip: config.Gossip{Bind: "127.0.0.1:7950"}}
	if got, _ := joins(alone, root); len(got) != 0 {
		t.Errorf("on loopback: %q", got)
	}
	rke2 := hostWith(t, map[string]string{"/var/lib/rancher/rke2/agent/etc/rke2-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.7:9345"]}`})
	if got, _ := joins(onOtherHosts, rke2); !slices.Equal(got, []string{"10.0.0.7"}) {
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
	root := hostWith(t, map[string]string{
		"/etc/rancher/k3s/config.yaml":                                "token: " + tokenPassword,
		"/var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json": `{"ServerAddresses":["10.0.0.1:6443"]}`,
	})
	cfg, err := configtest.Load(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	noteFound(t.Context(), &cfg, root)
	b, err := json.Marshal(cfg.Settings)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, string(b), `"default (the token in `+root+`/etc/rancher/k3s/config.yaml)"`, `{"key":"gossip.join","value":["10.0.0.1"],"source":"default (the servers in `+root)
	if strings.Contains(string(b), tokenPassword) {
		t.Errorf("the token is told: %s", b)
	}
	noteFound(t.Context(), &cfg, t.TempDir())
	if b, err = json.Marshal(cfg.Settings); err != nil {
		t.Fatal(err)
	}
	wantAll(t, string(b), "none that can be used")
}

func FuzzParseToken(f *testing.F) {
	f.Add(fullToken("server", tokenPassword))
	f.Add(tokenPassword)
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
