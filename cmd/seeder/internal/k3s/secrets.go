package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/p2p/trust"
)

const maxSecretFileBytes = 64 << 10

// TokenSource begins the source of a secret that comes from a token.
const TokenSource = "the token in "

// FoundSecrets are the secrets of the cluster.
type FoundSecrets struct {
	Secrets trust.Secrets
	Source  string // where they come from, for people
	Alone   bool   // there is none: this one ends with the process
	Note    string // something the log should say, or empty
}

// LoadSecrets is SecretLoader.Load once.
func LoadSecrets(cfg config.Config, root string) (FoundSecrets, error) {
	return new(SecretLoader).Load(cfg, root)
}

// SecretLoader finds the cluster's secrets, again and again: what costs time to derive
// is remembered. The zero value is ready. It is safe for concurrent use.
type SecretLoader struct{ stretch trust.Stretcher }

// Load finds the cluster's secrets: secret_file, else the default file, else what k3s
// has. All but secret_file is below root.
func (l *SecretLoader) Load(cfg config.Config, root string) (FoundSecrets, error) {
	path := cfg.SecretFile
	if path == "" {
		path = filepath.Join(root, config.DefaultSecretFile)
	}
	data, err := cli.ReadBounded(path, maxSecretFileBytes)
	switch {
	case err == nil:
		secrets, err := l.stretch.Parse(data)
		if err != nil {
			return FoundSecrets{}, cli.WithCode(cli.ExitUsage, fmt.Errorf("secret file %s: %w", path, err))
		}
		return FoundSecrets{Secrets: secrets, Source: path, Note: notes(exposedNote(path), weakNote(data))}, nil
	case cfg.SecretFile != "" && errors.Is(err, fs.ErrNotExist):
		return FoundSecrets{}, cli.Usagef("secret_file: %q does not exist; copy it from another node, or make the first one with `seeder secret generate > %s`", path, path)
	case !errors.Is(err, fs.ErrNotExist):
		return FoundSecrets{}, cli.Usagef("secret file: %w; the daemon must be able to read it", err)
	}
	password, from, err := k3sToken(root)
	if errors.Is(err, errNoToken) {
		if alone, aloneErr := withoutSecret(cfg); aloneErr == nil {
			return alone, nil // it needs none
		}
	}
	if err != nil {
		return FoundSecrets{}, err
	}
	if password == nil {
		return withoutSecret(cfg)
	}
	secret, err := l.stretch.SecretOfToken(password)
	found := FoundSecrets{Secrets: trust.Secrets{secret}, Source: TokenSource + from}
	if trust.Weak(password) {
		found.Note = "the password in the k3s token looks as if it could be guessed, and with it the whole cluster; write a secret file (`seeder secret generate`), and give k3s another token"
	}
	return found, err
}

// withoutSecret lets a node run alone on loopback addresses, with a secret that
// ends with the process; everything else is refused.
func withoutSecret(cfg config.Config) (FoundSecrets, error) {
	for _, a := range []struct{ key, value string }{
		{"gossip.bind", cfg.Gossip.Bind}, {"gossip.advertise", cfg.Gossip.Advertise},
		{"transfer.bind", cfg.Transfer.Bind}, {"transfer.advertise", cfg.Transfer.Advertise},
	} {
		if a.value != "" && !config.IsLoopback(a.value) {
			return FoundSecrets{}, cli.Usagef(`no secret: %s %s is reachable by other hosts, and without a secret anybody there could bring images to this one
  on the first host:   seeder secret generate > %s
  on every other host: copy that file to the same place, mode 0600`, a.key, a.value, config.DefaultSecretFile)
		}
	}
	secrets, err := trust.ParseSecrets([]byte(trust.GenerateSecret()))
	return FoundSecrets{
		Secrets: secrets, Alone: true, Source: "none",
		Note: "no secret: this node stays alone; make one with `seeder secret generate > " + config.DefaultSecretFile + "`",
	}, err
}

// exposedNote warns of a secret that every user of the host can read.
func exposedNote(path string) string {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o007 == 0 {
		return ""
	}
	return fmt.Sprintf("every user of this host can read the secret: chmod 600 %s", path)
}

// weakNote warns of secrets that look as if they could be guessed.
func weakNote(data []byte) string {
	lines := trust.WeakLines(data)
	if len(lines) == 0 {
		return ""
	}
	return fmt.Sprintf("the secret in line %d looks as if it could be guessed; make one with `seeder secret generate`", lines[0])
}

// notes joins what there is to say.
func notes(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), "; ")
}
