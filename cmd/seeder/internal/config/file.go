package config

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/text"
)

const (
	// MaxFileBytes bounds a configuration file.
	MaxFileBytes   = 1 << 20
	maxListEntries = 10_000
)

// Problems collects everything that is wrong with a configuration.
type Problems []string

// Add notes that key has a value that will not do; the text says what would.
func (p *Problems) Add(key string, value any, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if value == nil {
		*p = append(*p, fmt.Sprintf("%s: %s", key, text))
		return
	}
	*p = append(*p, fmt.Sprintf("%s: %s: %s", key, quoted(value), text))
}

// Err is all problems as one error with the exit code of an invalid configuration; nil where
// there are none.
func (p Problems) Err() error {
	switch len(p) {
	case 0:
		return nil
	case 1:
		return cli.Usagef("invalid configuration: %s", p[0])
	}
	return cli.Usagef("invalid configuration, %d problems:\n  %s", len(p), strings.Join(p, "\n  "))
}

func quoted(v any) string {
	const most = 80
	s := fmt.Sprintf("%v", v)
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// tabbed is the first line that a tab is in front of, counted from 1; 0: none is.
func tabbed(data []byte) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("\t")) {
			return n
		}
	}
	return 0
}

// parseFile returns the values of a YAML file by key. What is no key is a
// problem, and so is a key given twice.
func parseFile(path string, data []byte, p *Problems) map[string]any {
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		if line := tabbed(data); line > 0 {
			*p = append(*p, fmt.Sprintf("%s: line %d begins with a tab: YAML takes spaces only", path, line))
			return nil
		}
		*p = append(*p, fmt.Sprintf("%s: not a YAML mapping: %s", path, strings.TrimPrefix(err.Error(), "yaml: ")))
		return nil
	}
	var known []string
	for _, k := range Keys() {
		known = append(known, k.Name)
	}
	values := map[string]any{}
	flatten("", doc, known, values)
	var names []string
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	var root yaml.Node
	_ = yaml.Unmarshal(data, &root) // it was read above
	for _, name := range names {
		if !slices.Contains(known, name) {
			*p = append(*p, fmt.Sprintf("%s%s: unknown key %s%s", path, lineOf(&root, name), strconv.Quote(name), didYouMean(name, known)))
			delete(values, name)
		}
	}
	return values
}

// lineOf is where a key stands in a document, as ", line 2"; "" where it is not found.
func lineOf(at *yaml.Node, key string) string {
	if at.Kind == yaml.DocumentNode {
		return lineOf(at.Content[0], key)
	}
	for i := 0; at.Kind == yaml.MappingNode && i+1 < len(at.Content); i += 2 {
		name, value := at.Content[i], at.Content[i+1]
		if name.Value == key {
			return fmt.Sprintf(", line %d", name.Line)
		}
		if rest, ok := strings.CutPrefix(key, name.Value+"."); ok {
			return lineOf(value, rest)
		}
	}
	return ""
}

// flatten writes the leaves of m to out with dots between the names. What a key
// of known stands for is a leaf, a mapping included; nothing at all is no leaf.
func flatten(prefix string, m map[string]any, known []string, out map[string]any) {
	for name, v := range m {
		full := prefix + name
		if sub, ok := v.(map[string]any); ok && !slices.Contains(known, full) {
			flatten(full+".", sub, known, out)
			continue
		}
		section := slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, full+".") })
		if v == nil && (section || slices.Contains(known, full)) {
			continue // `gossip:` or `join:` with nothing behind it
		}
		out[full] = v
	}
}

// parse makes raw, from YAML or from text, a value of the kind of the key.
func (k Key) parse(raw any) (any, error) {
	switch k.Value.(type) {
	case bool:
		return parseBool(raw)
	case int:
		return parseInt(raw)
	case []string:
		return parseList(k.Name, raw)
	}
	switch v := raw.(type) {
	case string:
		return v, nil
	case int, int64, uint64, float64:
		return fmt.Sprint(v), nil // `upload_limit: 0` without quotes
	}
	return nil, errors.New("want one string")
}

func parseBool(raw any) (any, error) {
	switch v := raw.(type) {
	case bool:
		return v, nil
	case string:
		if b, err := strconv.ParseBool(v); err == nil {
			return b, nil
		}
	}
	return nil, errors.New("want true or false")
}

func parseInt(raw any) (any, error) {
	switch v := raw.(type) {
	case int:
		return v, nil
	case string:
		if n, err := strconv.Atoi(v); err == nil {
			return n, nil
		}
	}
	return nil, errors.New("want a whole number")
}

// parseList takes a YAML list, a comma-separated text, or for labels a mapping.
func parseList(name string, raw any) (any, error) {
	out := []string{}
	switch v := raw.(type) {
	case string:
		for _, s := range strings.Split(v, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	case []any:
		for _, e := range v {
			s, ok := scalar(e)
			if !ok {
				return nil, errors.New("want a list of strings")
			}
			out = append(out, s)
		}
	case map[string]any:
		if name != "labels" {
			return nil, errors.New("want a list, e.g. [a, b]")
		}
		for key, e := range v {
			s, ok := scalar(e)
			if !ok {
				return nil, fmt.Errorf("want one string as the value of label %s", key)
			}
			out = append(out, key+"="+s)
		}
		slices.Sort(out)
	default:
		return nil, errors.New("want a list, e.g. [a, b]")
	}
	if len(out) > maxListEntries {
		return nil, fmt.Errorf("%d entries: at most %d", len(out), maxListEntries)
	}
	return out, nil
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int, int64, uint64, float64, bool:
		return fmt.Sprint(v), true
	}
	return "", false
}

// didYouMean names the known word nearest to word, or nothing where none is near.
func didYouMean(word string, known []string) string {
	near := text.Nearest(known, 1, len(word)/2+1, func(key string) int {
		// A key without its section is near to it, however long the section is.
		d := text.Distance(word, key)
		if _, last, ok := strings.Cut(key, "."); ok {
			d = min(d, text.Distance(word, last)+1)
		}
		return d
	})
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + near[0] + "?"
}
