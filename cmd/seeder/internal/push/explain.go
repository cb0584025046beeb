package push

import (
	"errors"
	"fmt"
	"strings"
)

// explain says why the command on the host has ended, and what to do about it, by its exit
// code and what it wrote to standard error.
func (w way) explain(code int, stderr string) error {
	has := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(stderr, t) {
				return true
			}
		}
		return false
	}
	program, _, _ := strings.Cut(w.seeder, " ")
	switch {
	case has("sudo: a password is required", "sudo: a terminal is required", "sudo: no tty present"):
		return fmt.Errorf("sudo on %s asks for a password; if seeder is installed there, allow this one command without it, there and once: %s", w.host, w.sudoers())
	case has("is not in the sudoers file", "may not run sudo", "is not allowed to execute", "is not allowed to run sudo"):
		return fmt.Errorf("this user may not run %s by sudo on %s; allow it there, as root: %s", program, w.host, w.sudoers())
	case has("sudo: not found", "sudo: command not found", "‘sudo’: No such file", "'sudo': No such file"):
		return fmt.Errorf("sudo is missing on %s: log in as root: seeder push root@%s …, or --sudo=false for a user who may open the daemon's socket", w.host, hostOf(w.host))
	case code == 127, has("sudo: "+program+": command not found", program+": not found", "‘"+program+"’: No such file", "'"+program+"': No such file"):
		return fmt.Errorf("%s is missing on %s: install seeder there, or say where it is: --seeder /path/to/seeder", program, w.host)
	case has(`unknown command "dial-stdio"`):
		return fmt.Errorf("the seeder on %s is too old to take a push; upgrade it", w.host)
	case has("seeder: "):
		_, said, _ := strings.Cut(stderr, "seeder: ")
		return fmt.Errorf("on %s: %s", w.host, said)
	case code == 255 && stderr != "":
		return fmt.Errorf("ssh to %s failed: %s", w.host, stderr)
	case code == 0: // whatever was said: a banner, or a host that was added
		return errors.New("the daemon on " + w.host + " closed the connection; try again once it runs (there: systemctl status seeder)")
	case stderr != "":
		return fmt.Errorf("`%s` on %s failed with exit code %d: %s", w.remote(), w.host, code, stderr)
	}
	return fmt.Errorf("`%s` on %s failed with exit code %d", w.remote(), w.host, code)
}

// sudoers is the command that lets a user do this and nothing else.
func (w way) sudoers() string {
	user, program := "USER", w.seeder
	if name, _, ok := strings.Cut(w.host, "@"); ok {
		user = name
	}
	if !strings.HasPrefix(program, "/") {
		program = "/usr/bin/" + program
	}
	return fmt.Sprintf("echo '%s ALL=(root) NOPASSWD: %s dial-stdio' | sudo tee /etc/sudoers.d/seeder-push", user, program)
}

func hostOf(host string) string {
	return host[strings.LastIndexByte(host, '@')+1:]
}
