package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestBenchTable prints what the samples of TestBench say in the form of README.md: one
// row for each link and kind of layers, over all numbers of hosts, and a row for each of
// those with CPU-seconds.
func TestBenchTable(t *testing.T) {
	in := os.Getenv("BENCH_OUT")
	if in == "" || os.Getenv("BENCH_TABLE") == "" {
		t.Skip("prints the result of a benchmark; `make bench-quick` runs it")
	}
	b, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	var all []sample
	for line := range bytes.Lines(b) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	fmt.Print(tables(all))
}

// tables are both tables, from samples in the order in which they were taken.
func tables(all []sample) string {
	of := func(s sample, way string, f func(sample) float64) float64 {
		var out []float64
		for _, o := range all {
			if o.Way == way && o.Image == s.Image && o.Rate == s.Rate && o.Hosts == s.Hosts {
				out = append(out, f(o))
			}
		}
		return median(out)
	}
	ready := func(s sample) float64 { return s.Ready }
	cpu := func(s sample) float64 { return s.CPU }
	var keys []string
	ratios := map[string]map[string][]float64{}
	cells := map[string]bool{}
	var each strings.Builder
	for _, s := range all {
		cell := fmt.Sprint(s.Rate, s.Image, s.Hosts)
		if cells[cell] {
			continue
		}
		cells[cell] = true
		key := fmt.Sprintf("| %s | %s |", s.Rate, s.Image)
		if ratios[key] == nil {
			keys, ratios[key] = append(keys, key), map[string][]float64{}
		}
		ours, gb := of(s, "seeder", ready), float64(s.Bytes)*float64(s.Hosts-1)/1e9
		fmt.Fprintf(&each, "%s %d |", key, s.Hosts)
		for _, way := range []string{"seeder", "registry", "loop"} {
			if way != "seeder" {
				ratios[key][way] = append(ratios[key][way], of(s, way, ready)/ours)
			}
			fmt.Fprintf(&each, " %.1f s, %.1f |", of(s, way, ready), of(s, way, cpu)/gb)
		}
		fmt.Fprintf(&each, " %.2f |\n", of(s, "seeder", cpu)/of(s, "registry", cpu))
	}
	var out strings.Builder
	out.WriteString("| links | layers | against a registry on the first host | against the copy loop |\n|---|---|---|---|\n")
	for _, key := range keys {
		fmt.Fprintf(&out, "%s %s | %s |\n", key, faster(ratios[key]["registry"]), faster(ratios[key]["loop"]))
	}
	out.WriteString("\nSeconds until all hosts are ready, and CPU-seconds of the machine per GB that a host gets:\n\n")
	out.WriteString("| links | layers | hosts | seeder | registry | loop | CPU of seeder ÷ registry's |\n|---|---|---|---|---|---|---|\n")
	return out.String() + each.String()
}

// faster says how many times longer than seeder another way took.
func faster(ratios []float64) string {
	low, high := slices.Min(ratios), slices.Max(ratios)
	switch {
	case low >= 1:
		return fmt.Sprintf("%.1f to %.1f times faster", low, high)
	case high <= 1:
		return fmt.Sprintf("%.1f to %.1f times slower", 1/high, 1/low)
	}
	return fmt.Sprintf("%.1f times slower to %.1f times faster", 1/low, high)
}

// TestTables: the tables are of medians, and each way is divided the right way round.
func TestTables(t *testing.T) {
	t.Parallel()
	var all []sample
	for hosts, registry := range map[int]float64{2: 4, 4: 12} {
		for _, s := range []sample{{Way: "seeder", Ready: 8, CPU: 3}, {Way: "registry", Ready: registry, CPU: 2}, {Way: "loop", Ready: 16, CPU: 4}} {
			s.Hosts, s.Rate, s.Image, s.Bytes = hosts, "1000mbit", "raw", 1e9
			all = append(all, s)
		}
	}
	got := tables(all)
	for _, want := range []string{
		"| 1000mbit | raw | 2.0 times slower to 1.5 times faster | 2.0 to 2.0 times faster |\n",
		"| 1000mbit | raw | 4 | 8.0 s, 1.0 | 12.0 s, 0.7 | 16.0 s, 1.3 | 1.50 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
}
