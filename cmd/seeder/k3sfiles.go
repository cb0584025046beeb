package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// settings are what k3s was told about its token, by the name of the option, in
// the order of the places.
type settings map[string][]k3sSetting

type k3sSetting struct{ value, from string }

// k3sOptions are the options that matter here, with their short forms.
var k3sOptions = map[string]string{
	"token": "token", "t": "token", "token-file": "token-file",
	"agent-token": "agent-token", "agent-token-file": "agent-token-file",
	"data-dir": "data-dir", "d": "data-dir",
}

// settings reads the unit files, their environment files and the configuration.
// What is not there says nothing. On an error from is the place.
func (d distribution) settings(root string) (set settings, from string, err error) {
	set = settings{}
	read := func(path string, parse func([]byte) (map[string]string, error)) error {
		b, err := readBounded(path, maxConfigBytes)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it cannot be read: %w", err)
		}
		values, err := parse(b)
		for name, value := range values {
			if value != "" {
				set[name] = append(set[name], k3sSetting{value, path})
			}
		}
		return err
	}
	for _, path := range d.units {
		if path = filepath.Join(root, path); err == nil {
			from, err = path, read(path, parseUnit)
		}
	}
	for _, path := range d.env {
		if path = filepath.Join(root, path); err == nil {
			from, err = path, read(path, func(b []byte) (map[string]string, error) { return parseEnvFile(b, d.name) })
		}
	}
	configs := []string{filepath.Join(root, d.etc, "config.yaml")}
	for _, pattern := range []string{"*.yaml", "*.yml"} {
		more, _ := filepath.Glob(filepath.Join(root, d.etc, "config.yaml.d", pattern)) // a good pattern
		configs = append(configs, more...)
	}
	slices.Sort(configs[1:])
	values := map[string]k3sSetting{} // a later file takes the place of an earlier one
	for _, path := range configs {
		if err != nil {
			break
		}
		from, err = path, read(path, func(b []byte) (map[string]string, error) {
			in, err := parseK3sConfig(b)
			for name, value := range in {
				values[name] = k3sSetting{value, path}
			}
			return nil, err
		})
	}
	for name, s := range values {
		set[name] = append(set[name], s)
	}
	return set, from, err
}

// parseK3sConfig reads a configuration file. Its errors have none of it.
func parseK3sConfig(b []byte) (map[string]string, error) {
	var doc map[string]any
	if yaml.Unmarshal(b, &doc) != nil {
		return nil, errors.New("it is no YAML mapping")
	}
	out := map[string]string{}
	for key, v := range doc {
		name := k3sOptions[key]
		if name == "" || v == nil {
			continue
		}
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("%s is not a string; put it in quotes", key)
		}
		out[name] = text
	}
	return out, nil
}

// parseUnit reads the options in ExecStart of a unit file.
func parseUnit(b []byte) (map[string]string, error) {
	text := strings.ReplaceAll(string(b), "\r\n", "\n")
	text = strings.ReplaceAll(text, "\\\n", " ")
	out := map[string]string{}
	for line := range strings.Lines(text) {
		key, command, ok := strings.Cut(line, "=")
		if !ok || strings.TrimSpace(key) != "ExecStart" {
			continue
		}
		words, err := shellWords(command)
		if err != nil {
			return nil, errors.New("the quotes in ExecStart do not end")
		}
		if err := options(words, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// options reads --name value, --name=value and the short forms.
func options(words []string, out map[string]string) error {
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "-") {
			continue
		}
		key, value, given := strings.Cut(strings.TrimLeft(words[i], "-"), "=")
		name := k3sOptions[key]
		if name == "" {
			continue
		}
		if !given {
			if i++; i == len(words) {
				break
			}
			value = words[i]
		}
		if strings.ContainsAny(value, "$%") {
			return fmt.Errorf("--%s in ExecStart has $ or %%, which systemd replaces", key)
		}
		out[name] = value
	}
	return nil
}

// parseEnvFile reads an environment file of systemd. Only the variables that matter
// must be understood.
func parseEnvFile(b []byte, distribution string) (map[string]string, error) {
	prefix := strings.ToUpper(distribution) + "_"
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		short, ours := strings.CutPrefix(strings.TrimSpace(key), prefix)
		name := k3sOptions[strings.ReplaceAll(strings.ToLower(short), "_", "-")]
		if !ok || !ours || name == "" || len(short) == 1 || strings.ToUpper(short) != short {
			continue
		}
		words, err := shellWords(rest)
		if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "#") }); i > 0 {
			words = words[:i]
		}
		if err != nil || len(words) > 1 {
			return nil, fmt.Errorf("the value of %s%s is not one word, or its quotes do not end", prefix, short)
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
