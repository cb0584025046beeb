package ui

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestLive: three daemons; while the page of one is open, an image is announced on
// another, and the page shows without being loaded again how it comes to all of them;
// then that a member leaves, and that the node itself does not answer any more.
func TestLive(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	p := open(t, "http://"+nodes[0].http, "/")
	p.says("Nothing is announced yet")
	p.says("3 alive")
	// What is on the page at some time, and whether it is still the same page.
	p.do(`window.same = true; window.seen = new Set();
		new MutationObserver(() => { for (const e of document.querySelectorAll('.images td .mark')) seen.add(e.className.split(' ')[1]); })
			.observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true})`)
	seeder(t, "announce", "shop:v1", "--from", archive(t, "shop:v1", 12<<20), "--detach", "--socket", nodes[1].socket())
	p.says("↓ fetching")
	p.waitFor("transfers say from where", `[...document.querySelectorAll('.transfers .from')].some(e => /n[123] [0-9.]+ [KM]iB/.test(e.innerText))`)
	p.says("The image is ready on every node")
	p.says("ready here shop:v1")
	if got := eval[[]string](p, `[...document.querySelectorAll('.images td .mark')].map(e => e.innerText.trim())`); fmt.Sprint(got) != "[✓ ready ✓ ready ✓ ready]" {
		t.Errorf("the cells of the three nodes say %q", got)
	}
	if got := eval[[]string](p, `[...seen]`); !slices.Contains(got, "fetching") {
		t.Errorf("seen on the way: %v", got)
	}
	if got := eval[string](p, `document.title`); got != "✓ n1 · seeder" {
		t.Errorf("title %q", got)
	}
	// An image that is unfolded stays so where another one comes above it.
	p.run(chromedp.Click(chromedp.CSS(".image summary")))
	p.waitFor("it is unfolded", `document.querySelector('.image dl').checkVisibility()`)
	seeder(t, "announce", "app:v1", "--from", archive(t, "app:v1", 1<<20), "--socket", nodes[1].socket())
	p.says("All 2 images are ready on every node")
	if got := eval[[]string](p, `[...document.querySelectorAll('.images tbody tr')].map(e => e.dataset.key + ' ' + e.querySelector('details').open)`); fmt.Sprint(got) != "[app:v1 false shop:v1 true]" {
		t.Errorf("unfolded are %q", got)
	}
	p.says("received")
	p.says("n2 sent 1.")
	nodes[2].end(t)
	p.says("1 member left")
	p.says("2 alive")
	p.expectComplaints()
	nodes[0].end(t)
	p.says("This node does not answer")
	if !eval[bool](p, `window.same === true`) {
		t.Error("the page was loaded again")
	}
	p.says("All 2 images are ready on every node") // what was known stays in sight
}

// TestLargeCluster: 300 nodes and 40 images are summed up, and shown whole on demand
// in a region that scrolls under its heads.
func TestLargeCluster(t *testing.T) {
	t.Parallel()
	p := open(t, madeUp(t, "-nodes", "300", "-images", "40"), "/")
	p.says("0 of 40 images are ready on every node")
	p.says("297 alive 2 dead, 1 left")
	if rows := eval[int](p, `[...document.querySelectorAll('tr')].filter(e => e.checkVisibility()).length`); rows > 80 {
		t.Errorf("%d rows are seen at once", rows)
	}
	p.run(chromedp.Click(`//a[contains(., "Show the matrix")]`))
	p.says("Hide the matrix")
	p.waitFor("40 × 299 cells", `document.querySelectorAll('.matrix td').length === 40 * 299 && document.readyState === 'complete'`)
	heads := eval[[]float64](p, `(() => {
		const box = document.querySelector('.matrix'), at = e => e.getBoundingClientRect();
		box.scrollTo(3000, 400);
		return [box.scrollLeft, box.scrollTop, at(box.querySelector('thead th:last-child')).top - at(box).top, at(box.querySelector('tbody tr:last-child th')).left - at(box).left];
	})()`)
	if heads[0] < 1000 || heads[1] < 50 || math.Abs(heads[2]) > 2 || math.Abs(heads[3]) > 2 {
		t.Errorf("scrolled to %v, %v: the heads are %v below and %v right of where they stay", heads[0], heads[1], heads[2], heads[3])
	}
	if got := eval[string](p, `getComputedStyle(document.querySelector('.matrix td.failed'), '::before').content`); !strings.Contains(got, "!") {
		t.Errorf("a failed cell shows %s", got)
	}
}

// TestNothingOverflows: at no width does the page itself scroll sideways, whatever
// things are called.
func TestNothingOverflows(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nodes", "1", "-images", "0"}, {"-nodes", "3", "-images", "5"}, {"-nodes", "120", "-images", "6"}, {"-nodes", "8", "-images", "12", "-hostile"}, {"-nodes", "60", "-images", "12", "-hostile"}} {
		base := madeUp(t, args...)
		p := open(t, base, "/?show=matrix")
		p.do(`document.querySelectorAll('details').forEach(e => e.open = true)`)
		for _, width := range []int64{320, 390, 768, 1280} {
			p.run(chromedp.EmulateViewport(width, 900))
			if got := eval[[]int64](p, `[document.documentElement.scrollWidth, document.documentElement.clientWidth]`); got[0] > got[1] {
				t.Errorf("%v: %d wide in %d", args, got[0], got[1])
			}
			if width > 400 {
				continue
			}
			// On a phone the tables of nodes against each other alone scroll sideways.
			if got := eval[[]string](p, `[...document.querySelectorAll('.scroll:not(.grid)')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)`); len(got) > 0 {
				t.Errorf("%v: at %d these scroll: %q", args, width, got)
			}
		}
	}
}

// TestHostileNames: no name becomes markup, runs, or is asked for.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	base := madeUp(t, "-nodes", "60", "-images", "12", "-hostile")
	for _, path := range []string{"/", "/?show=matrix", "/?at=%3Cscript%3Ewindow.hacked=5%3C/script%3E"} {
		p := open(t, base, path)
		p.says("<script>window.hacked=1</script>")
		p.do(`document.querySelectorAll('details').forEach(e => e.open = true);
			for (const e of document.querySelectorAll('*')) e.dispatchEvent(new MouseEvent('mouseover', {bubbles: false}))`)
		if path == "/" {
			p.waitFor("is updated", `document.getElementById('asof').dateTime.endsWith('.000Z')`)
		}
		if eval[bool](p, `'hacked' in window || document.querySelectorAll('#view script, #view img, #view h1, [onerror], [onmouseover]').length > 0`) {
			t.Errorf("%s: a name became markup", path)
		}
		p.expectComplaints()
		p.do(`const s = document.createElement('script'), b = document.createElement('b');
			s.textContent = 'window.hacked = 9'; b.innerHTML = '<img src=x onerror="window.hacked = 10">'; document.body.append(s, b);`)
		p.waitFor("the image fails", `document.querySelector('b > img').complete`)
		if eval[bool](p, `'hacked' in window`) {
			t.Error("the policy lets text become code")
		}
	}
}

// TestWithoutJavaScript: everything is there, an image unfolds, and a link shows what is new.
func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	for path, c := range map[string]struct {
		args []string
		want []string
	}{
		"/?show=matrix": {[]string{"-nodes", "300", "-images", "40"},
			[]string{"0 of 40 images", "Hide the matrix", "no space left on device", "here already", "2 members do not answer", "28 more"}},
		"/": {[]string{"-nodes", "3", "-images", "5"}, []string{"Last rollouts", "k3s-dashboard:v1 version", "3 of 3", "compressed to 40 %", "sent 1.2 × the image",
			"received", "Who gave to whom", "Pods that wait for an image", "k3s crictl rmi --prune", "of 252 GiB"}},
	} {
		p := open(t, madeUp(t, c.args...), path, call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
		p.run(chromedp.Click(chromedp.CSS(".image summary")))
		p.waitFor("the image unfolds", `document.querySelector('.image dl').checkVisibility()`)
		said := eval[string](p, `document.body.innerText.replace(/\s+/g, ' ')`)
		for _, want := range append(c.want, "Reload", "Digest sha256:00000000", "Placement for every node", "Platforms linux/amd64, linux/arm64",
			"Layers 000000000000 1 MiB for linux/amd64", "Kept here bbbbbbbbbbbb: seeder announce --rollback grafana/loki:v1") {
			if !strings.Contains(said, want) {
				t.Errorf("%v: no %q in %s", c.args, want, said[:min(len(said), 4000)])
			}
		}
		if buttons := eval[int](p, `[...document.querySelectorAll('button')].filter(e => e.checkVisibility()).length`); buttons > 0 {
			t.Errorf("%v: %d buttons do nothing", c.args, buttons)
		}
		p.run(chromedp.Click(chromedp.CSS("#reload")), chromedp.WaitReady(chromedp.CSS("footer")))
	}
}

// TestKeyboard: all of it is reached and worked by keyboard, one sees where one is, and
// an update moves neither the focus nor what is unfolded.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	p := open(t, madeUp(t, "-nodes", "300", "-images", "40"), "/")
	focused := func() string {
		return eval[string](p, `(e => (e.id || e.innerText || e.getAttribute('aria-labelledby')).split('\n')[0])(document.activeElement)`)
	}
	var order []string
	for range 40 {
		p.run(chromedp.KeyEvent(kb.Tab))
		if eval[bool](p, `document.activeElement === document.body`) {
			break
		}
		order = append(order, focused())
		if got := eval[[]float64](p, `(e => [getComputedStyle(e).outlineStyle === 'none' ? 0 : parseFloat(getComputedStyle(e).outlineWidth), e.getBoundingClientRect().top, e.getBoundingClientRect().height])(document.activeElement)`); got[0] < 2 || got[2] == 0 {
			t.Errorf("the focus on %s is not seen: %v", focused(), got)
		}
	}
	at := -1
	for _, want := range []string{"Skip to the status", "pause", "28 more", "Show the matrix of 299 nodes", "90 more", "members", "Metrics", "Readiness"} {
		i := slices.IndexFunc(order, func(s string) bool { return strings.Contains(s, want) })
		if i <= at {
			t.Errorf("%q is not reached in its order: %q", want, order)
		}
		at = i
	}
	p.run(chromedp.Focus(chromedp.CSS("#members")), chromedp.KeyEvent(kb.Enter))
	p.waitFor("all members", `document.querySelector('#members').parentElement.open && document.querySelectorAll('.high tbody tr').length === 300`)
	p.isUpdated()
	if !eval[bool](p, `document.activeElement.id === 'members' && document.activeElement.parentElement.open`) {
		t.Errorf("after an update the focus is on %s", focused())
	}
	p.run(chromedp.Focus(chromedp.CSS("#pause")), chromedp.KeyEvent(" "))
	if got := eval[string](p, `document.getElementById('pause').innerText`); got != "Resume updates" {
		t.Errorf("the button says %q", got)
	}
	p.run(chromedp.Focus(chromedp.CSS(".skip")), chromedp.KeyEvent(kb.Enter))
	p.waitFor("at the status", `document.activeElement.id === 'main'`)
}

// TestAccessibilityTree: a user who does not see the page is told the same, in words.
func TestAccessibilityTree(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nodes", "3", "-images", "5"}, {"-nodes", "30", "-images", "12"}} {
		p := open(t, madeUp(t, args...), "/?show=matrix")
		p.do(`document.querySelectorAll('details').forEach(e => e.open = true)`)
		for _, width := range []int64{1280, 390} {
			p.run(chromedp.EmulateViewport(width, 900))
			tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, tree.Nodes)
		}
	}
}

// checkTree checks what a screen reader is given.
func checkTree(t *testing.T, tree []*accessibility.Node) {
	t.Helper()
	byRole := map[string][]string{}
	for _, n := range tree {
		if n.Ignored || n.Role == nil {
			continue
		}
		role, name := value(n.Role), value(n.Name)
		byRole[role] = append(byRole[role], name)
		switch role {
		case "table", "region", "link", "button", "columnheader", "rowheader", "heading", "img", "image", "RootWebArea", "DisclosureTriangle", "main":
			if strings.TrimSpace(name) == "" && role != "main" {
				t.Errorf("a %s without a name", role)
			}
		case "progressbar", "SvgRoot", "graphics-document":
			t.Errorf("a %s is read out beside the words that say it", role)
		}
	}
	for role, least := range map[string]int{"main": 1, "heading": 7, "table": 4, "columnheader": 15, "rowheader": 8, "cell": 40, "status": 2, "banner": 1, "contentinfo": 1, "region": 4} {
		if got := len(byRole[role]); got < least {
			t.Errorf("%d × %s, want at least %d", got, role, least)
		}
	}
	for _, want := range []string{"Images", "Not ready, and why", "Transfers", "Members", "Recent events on this node"} {
		if !slices.Contains(byRole["heading"], want) || !slices.Contains(byRole["region"], want) {
			t.Errorf("no heading and region %q among %q and %q", want, byRole["heading"], byRole["region"])
		}
	}
	// A cell says its state in a word, not by its colour or sign.
	cells := strings.Join(byRole["cell"], "|")
	for _, want := range []string{"ready", "fetching ", "failed", "alive"} {
		if !strings.Contains(cells, want) {
			t.Errorf("no cell says %q", want)
		}
	}
	if sign := "✓"; strings.Contains(cells, sign) {
		t.Errorf("a cell is read as %q", sign)
	}
}

func value(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	return strings.Trim(string(v.Value), `"`)
}

// contrast lists the texts that are seen and have less contrast than WCAG 2.2 AA asks
// for (4.5, or 3 where they are large), with the two colours.
const contrast = `(() => {
	const light = c => { const [r, g, b] = c.match(/[\d.]+/g).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
	const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\)$/.test(c)) return c } return 'rgb(255, 255, 255)' };
	const bad = new Set();
	const look = (e, s, what) => {
		const a = light(s.color), b = light(ground(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), px = parseFloat(s.fontSize);
		if (px && ratio < (px >= 24 || px >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5)) bad.add(what + ': ' + s.color + ' on ' + ground(e) + ' ' + ratio.toFixed(2));
	};
	for (const e of document.querySelectorAll('body *')) {
		if (!e.checkVisibility() || e.closest('svg, .hidden')) continue;
		if ([...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) look(e, getComputedStyle(e), e.tagName + '.' + e.className);
		const before = getComputedStyle(e, '::before');
		if (before.content !== 'none') look(e, before.backgroundColor.endsWith(', 0)') ? before : {color: before.color, fontSize: before.fontSize, fontWeight: 400}, e.tagName + '.' + e.className + '::before');
	}
	return [...bad];
})()`

// TestContrast: every text can be read, in the light and in the dark.
func TestContrast(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nodes", "3", "-images", "5"}, {"-nodes", "120", "-images", "6"}, {"-nodes", "1", "-images", "0"}} {
		base := madeUp(t, args...)
		grounds := map[string]string{}
		for _, name := range []string{"light", "dark"} {
			p := open(t, base, "/?show=matrix", scheme(name))
			p.do(`document.querySelectorAll('details').forEach(e => e.open = true)`)
			for _, line := range eval[[]string](p, contrast) {
				t.Errorf("%v, %s: %s", args, name, line)
			}
			grounds[name] = eval[string](p, `getComputedStyle(document.body).backgroundColor`)
		}
		if grounds["light"] == grounds["dark"] {
			t.Errorf("light and dark are the same: %v", grounds)
		}
	}
}

// maxScreenshot bounds what the repository takes of a picture.
const maxScreenshot = 150 << 10

// TestScreenshots writes the pictures of docs/ to the folder that SCREENSHOTS names.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		t.Skip("SCREENSHOTS names no folder: `make test-ui SCREENSHOTS=1` writes those of docs/images")
	}
	t.Parallel()
	base := madeUp(t, "-nodes", "3", "-images", "5")
	for _, name := range []string{"light", "dark"} {
		p := open(t, base, "/", scheme(name), chromedp.EmulateViewport(1200, 1600))
		p.says("Pause updates")
		png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		png = withPalette(t, png)
		if len(png) > maxScreenshot {
			t.Errorf("%s: %d bytes, more than %d", name, len(png), maxScreenshot)
		}
		if err := os.WriteFile(filepath.Join(dir, "status-"+name+".png"), png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
