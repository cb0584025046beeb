package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/control/controltest"
)

// TestCompleteReferences: the shell is offered what the daemon knows, and nothing,
// soon and silently, where there is none.
func TestCompleteReferences(t *testing.T) {
	t.Parallel()
	socket := controltest.Serve(t, &controltest.Node{})
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, c := range []struct {
		args string
		want string
	}{
		{"announce", "local:v1"},
		{"images", "app:v1 registry.example.com/me/app:v2"},
		{"withdraw", "app:v1 registry.example.com/me/app:v2"},
		{"wait app:v1", "registry.example.com/me/app:v2"},
		{"images app:v1", ""},
		{"status", ""},
		{"announce --from", "auto containerd docker podman -"},
		{"images -o", "text json"},
		{"completion", "bash zsh fish"},
	} {
		for _, s := range []string{socket, none} {
			words := strings.Fields(c.args)
			start := time.Now()
			args := append([]string{"__complete", words[0], "--socket", s}, words[1:]...)
			if words[0] == "completion" {
				args = append([]string{"__complete"}, words...)
			}
			a, stdout, _ := testApp()
			root := rootCommand(a)
			root.SetArgs(append(args, ""))
			root.SetOut(stdout)
			root.SetErr(stdout)
			if err := root.ExecuteContext(t.Context()); err != nil {
				t.Errorf("%s: %v", c.args, err)
			}
			offered, _, _ := strings.Cut(stdout.String(), "\n:") // then comes what the shell shall do
			got := strings.Join(strings.Fields(offered), " ")
			got = strings.TrimSpace(strings.TrimPrefix(" "+got, " :4 Completion ended with directive: ShellCompDirectiveNoFileComp"))
			want := c.want
			if s == none && strings.Contains(want, ":v") {
				want = ""
			}
			if got != want {
				t.Errorf("%s, socket %s: %q, want %q", c.args, filepath.Base(s), got, want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("%s: %s", c.args, took)
			}
		}
	}
}

// TestBashCompletes loads the script into a shell and presses the tab key, as the
// package bash-completion does it.
func TestBashCompletes(t *testing.T) {
	t.Parallel()
	a, script, _ := testApp()
	root := rootCommand(a)
	root.SetArgs([]string{"completion", "bash"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// TestMain makes the test binary seeder where it is called that.
	if err := os.Symlink(exe, filepath.Join(dir, "seeder")); err != nil {
		t.Fatal(err)
	}
	socket := controltest.Serve(t, &controltest.Node{})
	press := func(line string) string {
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-c", script.String()+`
_init_completion() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword-1]}; }
compopt() { :; }
COMP_WORDS=(`+line+` "")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE="`+line+` " COMP_TYPE=9
COMP_POINT=${#COMP_LINE}
__start_seeder
printf '%s\n' "${COMPREPLY[@]}"`)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	clitest.WantAll(t, press("seeder"), "announce", "images", "withdraw", "status")
	clitest.WantAll(t, press("seeder images --socket "+socket), "app:v1\n", "registry.example.com/me/app:v2\n")
	if got := press("seeder images --socket " + dir + "/none"); strings.TrimSpace(got) != "" {
		t.Errorf("without a daemon: %q", got)
	}
}
