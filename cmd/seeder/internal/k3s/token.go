// Package k3s is what the k3s or rke2 of a host gives to a node that was told nothing
// else: the cluster's secret, the servers to join, the address to advertise, and the
// socket of containerd.
//
// It owns how the files of k3s are read: units, environment files, configuration and
// tokens. It never writes one, never runs k3s, and asks no other host.
//
// Invariant: what the configuration says comes first, and each answer says where it was
// found. No error and no log line has any of a token.
package k3s

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/p2p/trust"
)

// distribution is where k3s, or rke2, which is laid out alike, keeps things.
type distribution struct {
	name  string
	data  string   // below it server/ and agent/
	etc   string   // config.yaml and config.yaml.d/
	units []string // the unit files
	env   []string // the units' environment files
}

// unitDirs are where units are, in no order that matters here.
var unitDirs = []string{"/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/"}

func distributions() []distribution {
	var out []distribution
	for _, d := range []struct{ name, server, agent string }{{"k3s", "k3s", "k3s-agent"}, {"rke2", "rke2-server", "rke2-agent"}} {
		x := distribution{name: d.name, data: "/var/lib/rancher/" + d.name, etc: "/etc/rancher/" + d.name}
		for _, unit := range []string{d.server, d.agent} {
			for _, dir := range unitDirs {
				x.units = append(x.units, dir+unit+".service")
				x.env = append(x.env, dir+unit+".service.env", dir+unit+".env")
			}
			x.env = append(x.env, "/etc/default/"+unit, "/etc/sysconfig/"+unit, x.etc+"/"+unit+".env") // the last with OpenRC
		}
		out = append(out, x)
	}
	return out
}

// serverTokens are the files of a server below its server directory, that which
// agents join with first: it is a link to the others unless agents have their own.
var serverTokens = []string{"agent-token", "node-token", "token"}

// tokenFix is what helps wherever the token does not do.
const tokenFix = "give all hosts a secret of seeder's own: `seeder secret generate > " + config.DefaultSecretFile + "` on one of them, and the same file, mode 0600, on the others"

// k3sToken is the password in the token that the k3s or rke2 of this host joined
// its cluster with, and where it was found; none where there is no such cluster.
// No error has any of it.
func k3sToken(root string) (password []byte, from string, err error) {
	for _, d := range distributions() {
		h, ok := d.host(root)
		if !ok {
			continue
		}
		password, from, err := h.token(root)
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, "", cli.Usagef("token of %s: %s: %w; root can read it, or: %s", d.name, from, err, tokenFix)
		case err != nil:
			return nil, "", cli.Usagef("token of %s: %s: %w; %s", d.name, from, err, tokenFix)
		case password == nil:
			if err := h.noToken(); err != nil {
				return nil, "", err
			}
		default:
			return password, from, nil
		}
	}
	return nil, "", nil
}

func (h Host) token(root string) (password []byte, from string, err error) {
	if h.role != "agent" { // else they are of a cluster that this host was a server of before
		for _, name := range serverTokens {
			from := filepath.Join(h.data, "server", name)
			if password, err := readToken(from); err != nil || password != nil {
				return password, from, err
			}
		}
	}
	if h.unclear != nil { // which does not matter to a server that has its token
		return nil, h.where, h.unclear
	}
	for _, kind := range []string{"agent-token", "token"} {
		password, from, err := h.configured(root, h.set, kind)
		if err != nil || password != nil {
			return password, from, err
		}
	}
	return nil, "", nil
}

// configured is the token that the settings of a kind give. Which of two would win
// is a matter of versions: they must be the same.
func (d distribution) configured(root string, set settings, kind string) (password []byte, from string, err error) {
	for _, s := range slices.Concat(set[kind], set[kind+"-file"]) {
		var next []byte
		if slices.Contains(set[kind], s) {
			next, err = parseToken(s.value)
		} else if next, err = readToken(filepath.Join(root, s.value)); err == nil && next == nil {
			err = fmt.Errorf("its token file %s is not there", s.value)
		}
		switch {
		case err != nil:
			return nil, s.from, err
		case password != nil && string(next) != string(password):
			return nil, s.from, fmt.Errorf("it is another one than that in %s", from)
		case next != nil:
			password, from = next, s.from
		}
	}
	return password, from, nil
}

// readToken reads a token file; nil where there is none, or nothing in it.
func readToken(path string) ([]byte, error) {
	b, err := cli.ReadBounded(path, maxTokenFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	return parseToken(string(b))
}

const maxTokenFileBytes = 64 << 10

var (
	caHash    = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
	bootstrap = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
)

// parseToken takes the password out of a token: bare, or K10 with the hash of the
// cluster's CA, which other servers may not have yet, a user, who differs between
// servers and agents, and the password, which is the same.
func parseToken(token string) ([]byte, error) {
	token = strings.TrimSpace(token)
	if token == "" {
		return nil, nil
	}
	if strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r == 0x7f }) >= 0 {
		return nil, errors.New("its format is unknown: there is white space in it")
	}
	password := token
	if rest, ok := strings.CutPrefix(token, "K10"); ok {
		hash, credentials, ok := strings.Cut(rest, "::")
		if !ok || !caHash.MatchString(hash) {
			return nil, errors.New("its format is unknown: it begins with K10 and not with K10, 64 hexadecimal digits and two colons")
		}
		if password = credentials; !bootstrap.MatchString(credentials) {
			if _, password, ok = strings.Cut(credentials, ":"); !ok || password == "" {
				return nil, errors.New("its format is unknown: want user:password")
			}
		}
	}
	if bootstrap.MatchString(password) {
		return nil, errors.New("it is a bootstrap token, which expires and which the other hosts do not have")
	}
	if len(password) < trust.MinSecretBytes {
		return nil, fmt.Errorf("its password has %d bytes, at least %d are needed: anyone who guesses it can join", len(password), trust.MinSecretBytes)
	}
	return []byte(password), nil
}

// balancedHosts reads the file in which an agent keeps its servers.
func balancedHosts(b []byte) []string {
	var in struct {
		ServerURL       string
		ServerAddresses []string
	}
	if json.Unmarshal(b, &in) != nil {
		return nil
	}
	if len(in.ServerAddresses) == 0 {
		in.ServerAddresses = []string{in.ServerURL}
	}
	return joinableHosts(in.ServerAddresses)
}
