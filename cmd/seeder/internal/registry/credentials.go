package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"

	"seeder/cmd/seeder/internal/cli"
	"seeder/internal/disk"
)

// Credentials are what a client of the registry has to show.
type Credentials struct {
	User, Password string
}

const (
	// credentialsFile in data_dir is one line, USER:PASSWORD.
	credentialsFile     = "registry-credentials"
	maxCredentialsBytes = 1 << 10
	user                = "seeder"
	passwordBytes       = 32
)

// LoadOrCreate are the credentials of this host, made and kept in dataDir (mode 0600) where
// there are none.
func LoadOrCreate(dataDir string) (Credentials, error) {
	c, err := load(dataDir)
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	b := make([]byte, passwordBytes)
	rand.Read(b) // never fails (crypto/rand since Go 1.24)
	c = Credentials{user, base64.RawURLEncoding.EncodeToString(b)}
	if err := disk.WriteFile(filepath.Join(dataDir, credentialsFile), []byte(c.pair()+"\n")); err != nil {
		return Credentials{}, fmt.Errorf("write the registry's credentials: %w", err)
	}
	return c, nil
}

// load wraps fs.ErrNotExist where there are none.
func load(dataDir string) (Credentials, error) {
	path := filepath.Join(dataDir, credentialsFile)
	b, err := cli.ReadBounded(path, maxCredentialsBytes)
	if err != nil {
		return Credentials{}, fmt.Errorf("read the registry's credentials: %w", err)
	}
	name, password, ok := strings.Cut(strings.TrimSuffix(string(b), "\n"), ":")
	if !ok || name == "" || len(password) < passwordBytes || strings.ContainsAny(name+password, "\n\r\"\\") {
		return Credentials{}, fmt.Errorf("invalid credentials in %s: want one line USER:PASSWORD with a password of %d characters or more; remove the file, and the daemon makes new ones when it starts", path, passwordBytes)
	}
	return Credentials{name, password}, nil
}

func (c Credentials) pair() string { return c.User + ":" + c.Password }

// header is the value of Authorization (RFC 7617).
func (c Credentials) header() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.pair()))
}

// match says whether a request shows the credentials. How long it takes tells nothing of
// them.
func (c Credentials) match(r *http.Request) bool {
	name, password, ok := r.BasicAuth()
	got, want := sha256.Sum256([]byte(name+":"+password)), sha256.Sum256([]byte(c.pair()))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && ok && c.Password != ""
}
