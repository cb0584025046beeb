package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
)

// settings are what k3s was told about its token and where its things are, by the name
// of the option, in the order of the places; role is server or agent, as the unit says.
type settings map[string][]k3sSetting

type k3sSetting struct{ value, from string }

// last is the value that was read last.
func (set settings) last(name, otherwise string) string {
	if list := set[name]; len(list) > 0 {
		return list[len(list)-1].value
	}
	return otherwise
}

// k3sOptions are the options that matter here, with their short forms. Docker alone
// takes no value.
var k3sOptions = map[string]string{
	"token": "token", "t": "token", "token-file": "token-file",
	"agent-token": "agent-token", "agent-token-file": "agent-token-file",
	"data-dir": "data-dir", "d": "data-dir", "server": "server", "s": "server",
	"config": "config", "c": "config", "docker": "docker", "container-runtime-endpoint": "container-runtime-endpoint",
	"node-ip": "node-ip", "i": "node-ip", "node-external-ip": "node-external-ip", "flannel-iface": "flannel-iface",
}

// addressOptions name this host's address, the one that counts most first. They may be
// given more than once, and several in one, with commas. What of them is not understood is
// passed over: nothing else depends on it.
var addressOptions = []string{"node-ip", "flannel-iface", "node-external-ip"}

// put books the value of an option.
func put(out map[string]string, name, value string) {
	if before := out[name]; before != "" && slices.Contains(addressOptions, name) {
		value = before + "," + value
	}
	out[name] = value
}

// k3sVariables are the options that an environment variable K3S_… gives, too.
var k3sVariables = map[string]string{
	"TOKEN": "token", "TOKEN_FILE": "token-file", "AGENT_TOKEN": "agent-token", "AGENT_TOKEN_FILE": "agent-token-file",
	"DATA_DIR": "data-dir", "URL": "server", "CONFIG_FILE": "config",
}

// reader gathers settings; the first error ends it.
type reader struct {
	root string
	d    distribution
	set  settings
	from string // the file that was read last
	err  error
}

// read reads one file. What is not there says nothing.
func (r *reader) read(path string, parse func([]byte) (map[string]string, error)) {
	if r.err != nil {
		return
	}
	r.from = path
	b, err := cli.ReadBounded(path, config.MaxFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		r.err = fmt.Errorf("it cannot be read: %w", err)
		return
	}
	values, err := parse(b)
	for name, value := range values {
		if value != "" {
			r.set[name] = append(r.set[name], k3sSetting{value, path})
		}
	}
	r.err = err
}

// settings reads the units, what was dropped in beside them, their environment files
// and the configuration. On an error from is the place.
func (d distribution) settings(root string) (set settings, from string, err error) {
	r := &reader{root: root, d: d, set: settings{}}
	env := slices.Clone(d.env)
	for _, path := range d.unitFiles(root) {
		r.read(path, func(b []byte) (map[string]string, error) {
			env = append(env, environmentFiles(b, unitOf(path))...)
			return parseUnit(b, d.name)
		})
	}
	slices.Sort(env[len(d.env):])
	for i, path := range env {
		if slices.Index(env, path) == i {
			r.read(filepath.Join(root, path), func(b []byte) (map[string]string, error) { return parseEnvFile(b, d.name) })
		}
	}
	r.configuration()
	return r.set, r.from, r.err
}

// unitFiles are the units below root, also those that were installed under another
// name (INSTALL_K3S_NAME), and their drop-ins.
func (d distribution) unitFiles(root string) []string {
	var out []string
	for _, path := range d.units {
		out = append(out, filepath.Join(root, path))
	}
	for _, dir := range unitDirs {
		for _, pattern := range []string{d.name + "-*.service", d.name + ".service.d/*.conf", d.name + "-*.service.d/*.conf"} {
			more, _ := filepath.Glob(filepath.Join(root, dir, pattern)) // a good pattern
			out = append(out, more...)
		}
	}
	slices.Sort(out[len(d.units):])
	var once []string
	for _, path := range out {
		if !slices.Contains(once, path) {
			once = append(once, path)
		}
	}
	return once
}

// unitOf is the name of the unit that a file is of.
func unitOf(path string) string {
	if dir := filepath.Base(filepath.Dir(path)); strings.HasSuffix(dir, ".service.d") {
		return strings.TrimSuffix(dir, ".d")
	}
	return filepath.Base(path)
}

// configuration reads config.yaml, or the file that is named in its place, and what is
// in the directory beside it, in order: a later value takes the place of an earlier
// one. (k3s adds with NAME+, but of a text it takes the last.)
func (r *reader) configuration() {
	base := filepath.Join(r.root, r.d.etc, "config.yaml")
	if named := r.set.last("config", ""); named != "" {
		if strings.Contains(named, "://") {
			return // what is elsewhere is not fetched
		}
		base = filepath.Join(r.root, named)
	}
	configs := []string{base}
	parts, err := os.ReadDir(base + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) && r.err == nil {
		r.from, r.err = base+".d", fmt.Errorf("it cannot be read: %w", err)
	}
	for _, part := range parts { // sorted
		if ext := strings.ToLower(filepath.Ext(part.Name())); !part.IsDir() && (ext == ".yaml" || ext == ".yml") {
			configs = append(configs, filepath.Join(base+".d", part.Name()))
		}
	}
	values := map[string]k3sSetting{}
	for _, path := range configs {
		r.read(path, func(b []byte) (map[string]string, error) {
			in, err := parseK3sConfig(b)
			for name, value := range in {
				values[name] = k3sSetting{value, path}
			}
			return nil, err
		})
	}
	for name, s := range values {
		r.set[name] = append(r.set[name], s)
	}
}

// parseK3sConfig reads a configuration file. Its errors have none of it.
func parseK3sConfig(b []byte) (map[string]string, error) {
	var doc map[string]any
	if yaml.Unmarshal(b, &doc) != nil {
		return nil, errors.New("it is not a YAML mapping")
	}
	out := map[string]string{}
	for _, plus := range []bool{false, true} { // NAME+ comes after NAME
		for key, v := range doc {
			bare, more := strings.CutSuffix(key, "+")
			name := k3sOptions[bare]
			if name == "" || v == nil || more != plus {
				continue
			}
			list, _ := v.([]any)
			if slices.Contains(addressOptions, name) {
				if len(list) == 0 {
					list = []any{v}
				}
				for _, v := range list {
					if text, ok := v.(string); ok {
						put(out, name, text)
					}
				}
				continue
			}
			if len(list) > 0 {
				v = list[len(list)-1]
			}
			switch v := v.(type) {
			case string:
				out[name] = v
			case bool:
				if name != "docker" {
					return nil, fmt.Errorf("%s is not a string; put it in quotes", bare)
				}
				out[name] = fmt.Sprint(v)
			default:
				return nil, fmt.Errorf("%s is not a string; put it in quotes", bare)
			}
		}
	}
	return out, nil
}

// unitLines are the assignments of a unit file, in order.
func unitLines(b []byte) iter.Seq2[string, string] {
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	text = strings.ReplaceAll(text, "\\\n", " ")
	return func(yield func(string, string) bool) {
		for line := range strings.Lines(text) {
			if key, value, ok := strings.Cut(line, "="); ok && !yield(strings.TrimSpace(key), value) {
				return
			}
		}
	}
}

// parseUnit reads the role and the options in ExecStart, and Environment, of a unit
// file or drop-in of a distribution.
func parseUnit(b []byte, distribution string) (map[string]string, error) {
	out := map[string]string{}
	for key, value := range unitLines(b) {
		switch key {
		case "ExecStart":
			words, err := shellWords(value)
			if err != nil {
				return nil, errors.New("the quotes in ExecStart do not end")
			}
			at := slices.IndexFunc(words, func(w string) bool { return w == "server" || w == "agent" })
			if at < 0 {
				continue // not what runs the node
			}
			out["role"] = words[at]
			if err := options(words[at+1:], out); err != nil {
				return nil, err
			}
		case "Environment":
			words, err := shellWords(value)
			if err != nil {
				return nil, errors.New("the quotes in Environment do not end")
			}
			for _, word := range words {
				variable, value, _ := strings.Cut(word, "=")
				name := variableOption(variable, distribution)
				if name != "" && strings.Contains(value, "%") {
					return nil, fmt.Errorf("%s in Environment has %%, which systemd replaces", variable)
				}
				if name != "" {
					out[name] = value
				}
			}
		}
	}
	return out, nil
}

// environmentFiles are those that a unit names.
func environmentFiles(b []byte, unit string) []string {
	var out []string
	for key, value := range unitLines(b) {
		if key != "EnvironmentFile" {
			continue
		}
		path := strings.TrimPrefix(strings.TrimSpace(value), "-")
		path = strings.NewReplacer("%N", strings.TrimSuffix(unit, ".service"), "%n", unit).Replace(path)
		if filepath.IsAbs(path) && !strings.ContainsAny(path, "%*?[") {
			out = append(out, path)
		}
	}
	return out
}

// options reads --name value, --name=value and the short forms.
func options(words []string, out map[string]string) error {
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "-") {
			continue
		}
		key, value, given := strings.Cut(strings.TrimLeft(words[i], "-"), "=")
		name := k3sOptions[key]
		switch {
		case name == "":
			continue
		case !given && name == "docker":
			value = "true"
		case !given:
			if i++; i == len(words) {
				return nil
			}
			value = words[i]
		}
		if slices.Contains(addressOptions, name) {
			if !strings.ContainsAny(value, "$%") {
				put(out, name, value)
			}
			continue
		}
		if strings.ContainsAny(value, "$%") {
			return fmt.Errorf("--%s in ExecStart has $ or %%, which systemd replaces", key)
		}
		out[name] = value
	}
	return nil
}

// variableOption is the option that an environment variable gives, empty where none
// that matters.
func variableOption(variable, distribution string) string {
	short, _ := strings.CutPrefix(variable, strings.ToUpper(distribution)+"_")
	if short == variable {
		return ""
	}
	return k3sVariables[short]
}

// parseEnvFile reads an environment file of systemd. Only the variables that matter
// must be understood.
func parseEnvFile(b []byte, distribution string) (map[string]string, error) {
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		variable := strings.TrimSpace(key)
		name := variableOption(variable, distribution)
		if !ok || name == "" {
			continue
		}
		words, err := shellWords(rest)
		if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "#") }); i > 0 {
			words = words[:i]
		}
		if err != nil || len(words) > 1 {
			return nil, fmt.Errorf("the value of %s is not one word, or its quotes do not end", variable)
		}
		out[name] = strings.Join(words, "")
	}
	return out, nil
}

var errQuote = errors.New("a quote that does not end")

// shellWords splits a line as sh does, without any expansion.
func shellWords(s string) (words []string, err error) {
	var word strings.Builder
	in, quote := false, byte(0) // in a word, in quotes
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(s):
			if i++; quote == '"' && !strings.ContainsRune("\"\\$`", rune(s[i])) {
				word.WriteByte('\\')
			}
			word.WriteByte(s[i])
			in = true
		case quote == 0 && (c == '\'' || c == '"'):
			in, quote = true, c
		case quote == 0 && strings.IndexByte(" \t\r\n", c) >= 0:
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			in = true
			word.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, errQuote
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
