// Package ui looks at the status page with a browser: Debian's Chromium without a
// window, driven over its DevTools protocol.
package ui

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	chromium = "/usr/bin/chromium"
	// patience is for what takes a moment here and long on a machine that is busy.
	patience = 60 * time.Second
	// lanName is the node that a made-up page is of. Under its name, as under an address of
	// a LAN, a browser has no clipboard for a page that comes by http.
	lanName = "edge-001"
)

// browser is the one Chromium of all tests.
var browser context.Context

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, file := range []string{chromium, bin("seeder"), bin("seeder-page")} {
		if _, err := os.Stat(file); err != nil {
			fmt.Fprintf(os.Stderr, "%v; run these tests by `make test-ui`, after test/install.sh\n", err)
			return 1
		}
	}
	profile, err := os.MkdirTemp("", "seeder-ui-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(profile)
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium), chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("force-color-profile", "srgb"), chromedp.Flag("host-resolver-rules", "MAP "+lanName+" 127.0.0.1"), chromedp.WSURLReadTimeout(patience),
	)...)
	defer stop()
	var end context.CancelFunc
	browser, end = chromedp.NewContext(alloc)
	defer end()
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, "start Chromium:", err)
		return 1
	}
	code := m.Run()
	_ = chromedp.Cancel(browser) // the processes end before the profile goes
	return code
}

func bin(name string) string {
	path, err := filepath.Abs(filepath.Join("../../bin", name))
	if err != nil {
		panic(err)
	}
	return path
}

// action is one that returns nothing.
type action = chromedp.Action[chromedp.Void]

// call is a command of the protocol as an action.
func call[P, R any](cmd cdp.Command[P, R], params P) action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, cmd, params)
		return err
	})
}

// tab is a page that somebody looks at.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string // http://host:port

	mu      sync.Mutex
	lenient bool // what the browser complains of is as it should be
	bad     []string
}

// open opens base+path in a browser of its own after the given actions. At the end of
// the test nothing may stand on the console, and nothing have been asked of others.
func open(t *testing.T, base, path string, first ...action) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	ctx, stop := context.WithTimeout(ctx, 2*patience)
	t.Cleanup(stop)
	p := &tab{t: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, p.listen); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, line := range p.bad {
			t.Error(line)
		}
	})
	actions := append([]action{call(log.Enable, cdp.Empty{}), call(network.Enable, network.EnableParams{}), call(runtime.Enable, cdp.Empty{}), chromedp.EmulateViewport(1280, 1000)}, first...)
	p.run(append(actions, chromedp.Navigate(base+path))...)
	return p
}

func (p *tab) listen(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		p.bad = append(p.bad, fmt.Sprintf("the console says %s", ev.Type))
	case *runtime.EventExceptionThrown:
		p.bad = append(p.bad, "exception: "+ev.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		if !p.lenient {
			p.bad = append(p.bad, fmt.Sprintf("the log says %s: %s %s", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(ev.Request.URL); err != nil || u.Scheme+"://"+u.Host != p.base {
			p.bad = append(p.bad, "a request to "+ev.Request.URL)
		}
	}
}

func (p *tab) run(actions ...action) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// expectComplaints: from now on what is asked for fails, and the browser says so.
func (p *tab) expectComplaints() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lenient = true
}

// eval evaluates an expression in the page.
func eval[T any](p *tab, js string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		p.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// do evaluates statements in the page.
func (p *tab) do(js string) {
	p.t.Helper()
	eval[bool](p, js+"; true")
}

// waitFor returns when an expression is true in the page. It is asked from here, since
// the policy of the page lets no text become code.
func (p *tab) waitFor(what, js string) {
	p.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for !eval[bool](p, js) {
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("not within %s: %s; the page says %s", patience, what, eval[string](p, "document.body.innerText.slice(0, 4000)"))
		}
	}
}

// says waits until the text stands on the page.
func (p *tab) says(text string) {
	p.t.Helper()
	p.waitFor("says "+text, fmt.Sprintf("document.body?.innerText.replace(/\\s+/g, ' ').includes(%q) === true", text))
}

func scheme(name string) action {
	return call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
}

// madeUp serves the page of a cluster that exists in its figures alone, until the test
// ends.
func madeUp(t *testing.T, args ...string) (base string) {
	t.Helper()
	base, _ = changing(t, args...)
	return base
}

// changing is madeUp with a way to have the page be of another cluster.
func changing(t *testing.T, args ...string) (base string, become func(nodes, images int)) {
	t.Helper()
	cmd := exec.Command(bin("seeder-page"), args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + strings.TrimSpace(line), func(nodes, images int) {
		t.Helper()
		if _, err := fmt.Fprintln(stdin, nodes, images); err != nil {
			t.Fatal(err)
		}
	}
}

// isUpdated returns when the page has been updated since.
func (p *tab) isUpdated() {
	p.t.Helper()
	before := eval[string](p, `document.getElementById('asof').dateTime`)
	p.waitFor("an update", fmt.Sprintf(`document.getElementById('asof').dateTime !== %q`, before))
}
