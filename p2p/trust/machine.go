package trust

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"seeder/internal/disk"
)

// An identity is bound to the machine that it was made on, so that a copy of data_dir in
// an image of a machine does not give many hosts one identity. The file beside it,
// identity.machine, has a hash of /etc/machine-id, which every system makes anew for a
// copy. A copy of the identity alone has none: anyone who moves it means to.

const (
	boundSuffix = ".machine"
	// OtherMachine is the suffix of an identity that was set aside.
	OtherMachine = ".other-machine"
)

var machineID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// MachineID is what the file at path, /etc/machine-id, has; empty where there is none, as
// in some containers, or where the system has not set it yet (machine-id(5)).
func MachineID(path string) string {
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && machineID.MatchString(id) {
		return id
	}
	return ""
}

// boundTo is what the file has for a machine. The id itself is confidential
// (machine-id(5)): what is derived from it takes a key of the program's own.
func boundTo(machine string) string {
	h := hmac.New(sha256.New, []byte(machine))
	h.Write([]byte("seeder identity"))
	return hex.EncodeToString(h.Sum(nil))
}

// BindIdentity sets the identity at path aside where it was made on another machine, and
// binds what is there from now on to this one. Without a machine it does nothing. Call it
// before LoadOrCreateIdentity. A cut at any step leaves the old identity, or none.
func BindIdentity(path, machine string) (aside string, err error) {
	if machine == "" {
		return "", nil
	}
	bound, err := os.ReadFile(path + boundSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the machine of the identity: %w", err)
	}
	was, is := strings.TrimSpace(string(bound)), boundTo(machine)
	if was == is {
		return "", nil
	}
	if _, err := os.Lstat(path); err == nil && len(was) == len(is) {
		aside = path + OtherMachine
		if err := os.Rename(path, aside); err != nil {
			return "", fmt.Errorf("rename the identity of another machine: %w", err)
		}
		if err := disk.SyncDir(filepath.Dir(path)); err != nil {
			return "", fmt.Errorf("rename the identity of another machine: %w", err)
		}
	}
	if err := disk.WriteFile(path+boundSuffix, []byte(is+"\n")); err != nil {
		return aside, fmt.Errorf("bind the identity to this machine: %w", err)
	}
	return aside, nil
}
