// Package doctor is the checks of `seeder doctor`: what an image needs on its way to the
// pods of this host, and what is wrong with it.
//
// It owns the checks and their texts. It never changes anything on the host, and asks
// other nodes through the daemon alone.
//
// Invariant: every check ends in time and says ok, warning, problem or skipped; a warning
// and a problem say what helps.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/term"
	"seeder/internal/text"
)

// The states of a finding.
const (
	StateOK      = "ok"
	StateWarning = "warning" // worth a look; nothing is wrong yet
	stateProblem = "problem" // something is wrong
	StateSkipped = "skipped" // could not be looked at, detail says why
)

// finding is what one check found of one thing. Together they are `seeder doctor
// -o json`.
type finding struct {
	Name    string `json:"name"`    // of the check
	State   string `json:"state"`   // ok, warning, problem or skipped
	Subject string `json:"subject"` // the file, socket, host, image or pod; may be empty
	Detail  string `json:"detail"`
	Fix     string `json:"fix"` // the command or line that helps; empty where there is nothing to fix

	private bool // only root can look at it
}

// needsRoot is the finding of a check that only root can make.
func needsRoot(name, subject string) finding {
	return finding{Name: name, State: StateSkipped, Subject: subject, Detail: "only root can check this", private: true}
}

// Report is what all checks found; its JSON is what `seeder doctor -o json` prints.
type Report struct {
	OK     bool      `json:"ok"` // nothing is a problem
	Checks []finding `json:"checks"`
}

// check looks at one topic and returns at least one finding.
type check struct {
	name string
	run  func(ctx context.Context) []finding
}

const (
	// checkTimeout is what a check may take; the daemon's own part of it takes ten
	// seconds at most.
	checkTimeout = 12 * time.Second
	// checkGrace is what a check has to notice that its time is up.
	checkGrace = 2 * time.Second
)

// Command is `seeder doctor`.
func Command(env *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Diagnose problems on this host and suggest fixes",
		Long: `Check everything that images need on their way to the pods of this host: the
configuration, the daemon, the secret, containerd with its namespace and CRI, layers,
the registry, disk, ports, the network to and from each member, clocks, and pods that
wait for an image. It takes at most 15 s and changes nothing; run it as root. Checks that do not
need the daemon run even when it is down.

The exit code is 0 if no problem is found, else 1. Pods are checked if kubectl and a
kubeconfig are found: --kubeconfig, KUBECONFIG, those of k3s and rke2, ~/.kube/config.`,
		Example: "  seeder doctor\n  seeder doctor -o json | jq '.checks[] | select(.state == \"problem\")'",
		Args:    cli.ArgCount(0, 0, "no arguments"),
	}
	control.Flags(env, cmd)
	out := cli.OutputFlag(cmd)
	kubeconfig := cmd.Flags().String("kubeconfig", "", "kubeconfig `file` to use for pods")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		e := newExam(env, *kubeconfig)
		r := examine(cmd.Context(), e.checks(), checkTimeout)
		if err := cmd.Context().Err(); err != nil {
			return context.Cause(cmd.Context())
		}
		err := printReport(env.Stdout, term.Of(env, env.Stdout), r, *out)
		if err == nil && !r.OK {
			err = errors.New("") // all is said
		}
		return err
	}
	return cmd
}

// examine runs the checks side by side and returns what they found in their order.
func examine(ctx context.Context, checks []check, timeout time.Duration) Report {
	found := make([][]finding, len(checks))
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { found[i] = c.within(ctx) })
	}
	wg.Wait()
	r := Report{OK: true, Checks: []finding{}}
	for _, list := range found {
		for _, f := range list {
			r.Checks = append(r.Checks, f)
			r.OK = r.OK && f.State != stateProblem
		}
	}
	r.sayWhatNeedsRoot()
	return r
}

// sayWhatNeedsRoot adds what could not be checked by this user: nothing that was not looked
// at counts as well.
func (r *Report) sayWhatNeedsRoot() {
	var names []string
	for _, f := range r.Checks {
		if f.private && !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		return
	}
	r.OK = false
	r.Checks = append(r.Checks, finding{Name: "root", State: stateProblem,
		Detail: "not run as root, so these were not checked: " + strings.Join(names, ", "), Fix: "sudo seeder doctor"})
}

// within runs the check. One that does not even end with its context, as where a
// file system hangs, is left behind: it ends with the process.
func (c check) within(ctx context.Context) []finding {
	done := make(chan []finding, 1)
	go func() { done <- c.run(ctx) }()
	select {
	case f := <-done:
		return f
	case <-ctx.Done():
	}
	select {
	case f := <-done:
		return f
	case <-time.After(checkGrace):
		return []finding{{Name: c.name, State: stateProblem, Detail: "the check hangs: the system does not answer (a file system, a name server?)",
			Fix: "look at `dmesg | tail` and at mounted network file systems"}}
	}
}

// maxSubjects is how many subjects of a check are named where all is well.
const maxSubjects = 6

func printReport(w io.Writer, terminal term.Terminal, r Report, out cli.Output) error {
	if out == "json" {
		return cli.PrintJSON(w, r)
	}
	var lines []string
	for i := 0; i < len(r.Checks); {
		f := r.Checks[i]
		n := 1
		for f.State == StateOK && f.Name != "disk" && i+n < len(r.Checks) && r.Checks[i+n].Name == f.Name && r.Checks[i+n].State == StateOK {
			n++
		}
		lines = append(lines, findingLines(terminal, r.Checks[i:i+n])...)
		i += n
	}
	problems, warnings := count(r, stateProblem), count(r, StateWarning)
	last := "nothing is wrong"
	if problems > 0 {
		last = term.Plural(problems, "problem")
	}
	if warnings > 0 {
		last += ", " + term.Plural(warnings, "warning")
	}
	_, err := fmt.Fprintln(w, strings.Join(append(lines, "", last), "\n"))
	return err
}

func count(r Report, state string) (n int) {
	for _, f := range r.Checks {
		if f.State == state {
			n++
		}
	}
	return n
}

// findingLines are the lines of one finding, or of several of a check that are all
// well.
func findingLines(terminal term.Terminal, same []finding) []string {
	f := same[0]
	colour := map[string]string{StateOK: term.Green, StateWarning: term.Yellow, stateProblem: term.Red, StateSkipped: term.Faint}[f.State]
	subject := f.Subject
	if len(same) > 1 {
		var names []string
		for _, s := range same[:min(len(same), maxSubjects)] {
			names = append(names, s.Subject)
		}
		if subject = strings.Join(names, ", "); len(same) > maxSubjects {
			subject += fmt.Sprintf(" and %d more", len(same)-maxSubjects)
		}
		f.Detail = ""
	}
	text := strings.TrimSuffix(term.Clean(subject)+": "+cleanLines(f.Detail), ": ")
	lines := []string{terminal.Paint(colour, fmt.Sprintf("%-7s", f.State)) + "  " + fmt.Sprintf("%-10s", f.Name) + "  " + strings.TrimPrefix(text, ": ")}
	if f.Fix != "" && f.State != StateOK {
		lines = append(lines, "         fix: "+cleanLines(f.Fix))
	}
	return lines
}

// cleanLines makes text safe for a terminal that may have several lines.
func cleanLines(s string) string {
	return strings.ReplaceAll(text.Lines(s, len(s)), "\n", "\n               ")
}
