package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/config/configtest"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/p2p"
	"seeder/p2p/report"
)

const (
	metricsDoc    = "../../docs/metrics.md"
	alertsFile    = "../../configs/alerts.yaml"
	alertsTest    = "../../configs/alerts_test.yaml"
	dashboardFile = "../../configs/grafana-dashboard.json"
)

// behindNode is a node for which an image is not ready: only then is there a series of it.
type behindNode struct{ *p2p.Node }

func (n behindNode) Counts() report.Counts {
	c := n.Node.Counts()
	c.Behind = []report.Behind{{Reference: "docker.io/library/app:v1", State: report.Failed}}
	return c
}

// runningFamilies is what /metrics of a running node has, by name.
func runningFamilies(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	cfg, err := configtest.Load(t, "", nil, "--node-name", "n1", "--data-dir", t.TempDir(), "--containerd-address", "embedded",
		"--gossip-bind", "127.0.0.1:0", "--transfer-bind", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := k3s.LoadSecrets(cfg.Config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := wire(t.Context(), cfg.Config, f.Secrets, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	if err := w.node.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.node.Close() })
	w.register(behindNode{w.node}, func() bool { return false })
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

// TestMetricNames: by Prometheus' conventions, and each with the type that
// docs/metrics.md gives it; which has no others.
func TestMetricNames(t *testing.T) {
	t.Parallel()
	families := runningFamilies(t)
	var ours []*dto.MetricFamily
	for name, f := range families {
		if strings.HasPrefix(name, "seeder_") {
			ours = append(ours, f)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(ours).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	documented := map[string]string{} // type by name
	for line := range strings.Lines(readText(t, metricsDoc)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`seeder_") {
			continue
		}
		for _, m := range regexp.MustCompile("`(seeder_[a-z_]+)(?:\\{([a-z,]+)\\})?`").FindAllStringSubmatch(cells[1], -1) {
			documented[m[1]] = strings.TrimSpace(cells[2])
			if f := families[m[1]]; f == nil {
				t.Errorf("docs/metrics.md has %s, a running node has not", m[1])
			} else if got := labelNames(f); got != sorted(m[2]) {
				t.Errorf("%s has the labels %q, docs/metrics.md has %q", m[1], got, m[2])
			}
		}
	}
	for _, f := range ours {
		if want := strings.ToLower(f.GetType().String()); documented[f.GetName()] != want {
			t.Errorf("%s is a %s, docs/metrics.md has %q", f.GetName(), want, documented[f.GetName()])
		}
	}
}

// labelNames are those of the first series, sorted and with commas, as sorted has them.
func labelNames(f *dto.MetricFamily) string {
	var out []string
	for _, l := range f.GetMetric()[0].GetLabel() {
		out = append(out, l.GetName())
	}
	return sorted(strings.Join(out, ","))
}

func sorted(names string) string {
	list := strings.Split(names, ",")
	slices.Sort(list)
	return strings.Join(list, ",")
}

// checkQuery: every metric of a query is one that a running node has, and every state,
// reason and source is one that it has a series for.
func checkQuery(t *testing.T, families map[string]*dto.MetricFamily, where, query string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`\b((?:seeder|go|process)_[a-z_]+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(query, -1) {
		name := m[1]
		f := families[name]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); f == nil && ok && families[base].GetType() == dto.MetricType_HISTOGRAM {
				f = families[base]
			}
		}
		if f == nil {
			t.Errorf("%s: there is no metric %s", where, name)
			continue
		}
		for _, l := range regexp.MustCompile(`(state|reason|source)(!?=~?)"([^"]*)"`).FindAllStringSubmatch(m[2], -1) {
			for _, value := range strings.Split(l[3], "|") {
				if !hasSeries(f, l[1], value) {
					t.Errorf("%s: %s has no series with %s=%q", where, name, l[1], value)
				}
			}
		}
	}
}

func hasSeries(f *dto.MetricFamily, label, value string) bool {
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == label && l.GetValue() == value {
				return true
			}
		}
	}
	return false
}

// promtool runs Prometheus' own checker, which test/install.sh unpacks. Without
// PROMTOOL, which `make alerts` sets, a machine that has none is left in peace.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	program := os.Getenv("PROMTOOL")
	if program == "" {
		program = "../../bin/prometheus/promtool"
		if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
			t.Skip("no promtool in bin/prometheus; test/install.sh puts it there, `make alerts` asks for it")
		}
	}
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// rule is one of configs/alerts.yaml.
type rule struct {
	Alert       string            `yaml:"alert,omitempty"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

type ruleFile struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

// TestAlerts: each alert is about metrics that there are, says how bad it is and what
// to do, has a remedy in the docs, and a case where it fires and one where it does not;
// and promtool agrees with the cases.
func TestAlerts(t *testing.T) {
	t.Parallel()
	families := runningFamilies(t)
	var file ruleFile
	var cases struct {
		Tests []struct {
			Rules []struct {
				Alert string `yaml:"alertname"`
				Fires []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	if err := errors.Join(yaml.Unmarshal([]byte(readText(t, alertsFile)), &file), yaml.Unmarshal([]byte(readText(t, alertsTest)), &cases)); err != nil {
		t.Fatal(err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, c := range cases.Tests {
		for _, r := range c.Rules {
			fires[r.Alert] = fires[r.Alert] || len(r.Fires) > 0
			quiet[r.Alert] = quiet[r.Alert] || len(r.Fires) == 0
		}
	}
	remedies := readText(t, metricsDoc)
	if operations, err := os.ReadFile("../../docs/operations.md"); err == nil {
		remedies += string(operations)
	}
	for _, r := range file.Groups[0].Rules {
		checkQuery(t, families, r.Alert, r.Expr)
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no summary or no description", r.Alert)
		}
		// Absolute: a mail of Alertmanager is read anywhere. systemd/install.sh installs it there.
		if want := "file:///usr/share/doc/seeder/operations.md#alert-" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s has the runbook_url %q, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(remedies, "\n### Alert "+r.Alert+"\n") {
			t.Errorf("the docs have no section about %s", r.Alert)
		}
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s has no case in alerts_test.yaml where it fires, or none where it does not", r.Alert)
		}
	}
	promtool(t, "check", "rules", alertsFile)
	promtool(t, "test", "rules", alertsTest)
}

// TestDashboard: each query is about metrics that there are and is one that Prometheus
// understands; no data source but the one that is chosen; no panel on top of another.
func TestDashboard(t *testing.T) {
	t.Parallel()
	families := runningFamilies(t)
	text := readText(t, dashboardFile)
	var dashboard struct {
		Title      string `json:"title"`
		Templating struct {
			List []struct {
				Name  string `json:"name"`
				Query any    `json:"query"`
			} `json:"list"`
		} `json:"templating"`
		Annotations struct {
			List []struct {
				Expr string `json:"expr"`
			} `json:"list"`
		} `json:"annotations"`
		Panels []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
			GridPos struct{ X, Y, W, H int } `json:"gridPos"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := map[string]string{}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: no id of its own, no title, or wider than the page", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q overlaps %q", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for i, target := range p.Targets {
			queries[fmt.Sprintf("%s %d", p.Title, i)] = target.Expr
		}
	}
	for i, a := range dashboard.Annotations.List {
		queries[fmt.Sprintf("annotation %d", i)] = a.Expr
	}
	for _, m := range regexp.MustCompile(`"uid": *"([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if m[1] != "${datasource}" {
			t.Errorf("the data source %q is not everybody's", m[1])
		}
	}
	var names []string
	for _, v := range dashboard.Templating.List {
		names = append(names, v.Name)
		checkQuery(t, families, "variable "+v.Name, fmt.Sprint(v.Query))
	}
	if want := []string{"datasource", "job", "instance"}; !slices.Equal(names, want) {
		t.Errorf("the variables are %q, want %q", names, want)
	}
	used := map[string]bool{}
	var file ruleFile
	file.Groups = append(file.Groups, struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	}{Name: "dashboard"})
	for where, query := range queries {
		checkQuery(t, families, where, query)
		for _, name := range regexp.MustCompile(`seeder_[a-z_]+`).FindAllString(query, -1) {
			used[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")] = true
		}
		query = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*").Replace(query)
		file.Groups[0].Rules = append(file.Groups[0].Rules, rule{Alert: "Query" + fmt.Sprint(len(file.Groups[0].Rules)), Expr: query})
	}
	for name := range families {
		if strings.HasPrefix(name, "seeder_") && !used[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
	b, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
