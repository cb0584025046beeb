package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestBenchReport writes docs/benchmarks.md from the samples of TestBench.
func TestBenchReport(t *testing.T) {
	in, out := os.Getenv("BENCH_OUT"), os.Getenv("BENCH_REPORT")
	if out == "" {
		t.Skip("writes the report of a benchmark; `make bench` runs it")
	}
	b, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]sample{}
	var keys []string
	for line := range bytes.Lines(b) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%s/%s/%d/%d", s.Image, s.Rate, s.Hosts, s.Cores)
		if groups[key] == nil {
			keys = append(keys, key)
		}
		groups[key] = append(groups[key], s)
	}
	var w strings.Builder
	w.WriteString("| image | link | hosts | way | runs | last byte ÷ optimum | ready on all | ready ÷ seeder's | source sent ÷ W | other hosts sent ÷ W | CPU s | for each GB that a host gets | peak RSS |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, key := range keys {
		var ours []float64
		var wire float64
		for _, s := range groups[key] {
			if s.Way == "seeder" {
				ours, wire = append(ours, s.Ready), s.Wire
			}
		}
		for _, way := range []string{"seeder", "registry", "loop", "tls"} {
			var list []sample
			for _, s := range groups[key] {
				if s.Way == way {
					list = append(list, s)
				}
			}
			for _, s := range list {
				if d := math.Abs(float64(s.Bytes)/float64(list[0].Bytes) - 1); d > 0.1 {
					t.Fatalf("%s by %s: samples of %d and of %d bytes are in one row", key, way, list[0].Bytes, s.Bytes)
				}
			}
			if len(list) > 0 {
				w.WriteString(row(list, median(ours), wire))
			}
		}
	}
	page, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- begin of what make bench writes -->\n", "<!-- end of what make bench writes -->\n"
	head, rest, ok := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks between which the table goes", out)
	}
	if err := os.WriteFile(out, []byte(head+begin+w.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// row is a line of the table: medians with the range.
func row(list []sample, seeder, wire float64) string {
	get := func(f func(sample) float64) []float64 {
		var out []float64
		for _, s := range list {
			out = append(out, f(s))
		}
		return out
	}
	s := list[0]
	lastByte := "–"
	if s.Way == "seeder" && s.Optimum > 0 {
		lastByte = spread(get(func(s sample) float64 { return s.LastByte / s.Optimum }), "%.2f")
	}
	rss := "–"
	if s.PeakRSS > 0 {
		rss = fmt.Sprintf("%.0f MB", median(get(func(s sample) float64 { return s.PeakRSS }))/1e6)
	}
	cpu := median(get(func(s sample) float64 { return s.CPU }))
	gb := float64(s.Bytes) * float64(s.Hosts-1) / 1e9
	hosts := strconv.Itoa(s.Hosts)
	if s.Cores > 0 {
		hosts += fmt.Sprintf(" (cores of each: %d)", s.Cores)
	}
	runs := strconv.Itoa(len(list))
	if most := slices.MaxFunc(list, func(a, b sample) int { return a.AtOnce - b.AtOnce }).AtOnce; most > 1 {
		runs += fmt.Sprintf(", %d at once", most)
	}
	return fmt.Sprintf("| %s, %.0f MB | %s | %s | %s | %s | %s | %s s | %s | %s | %s | %.1f | %.1f | %s |\n", s.Image, float64(s.Bytes)/1e6, s.Rate, hosts, s.Way,
		runs, lastByte, spread(get(func(s sample) float64 { return s.Ready }), "%.1f"),
		spread(get(func(s sample) float64 { return s.Ready / seeder }), "%.2f"),
		spread(get(func(s sample) float64 { return s.Source / wire }), "%.2f"),
		spread(get(func(s sample) float64 { return s.Others / wire }), "%.2f"), cpu, cpu/gb, rss)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// spread is the median and, where there are several, the range.
func spread(v []float64, format string) string {
	s := fmt.Sprintf(format, median(v))
	if len(v) > 1 {
		s += fmt.Sprintf(" ("+format+" … "+format+")", slices.Min(v), slices.Max(v))
	}
	return s
}
