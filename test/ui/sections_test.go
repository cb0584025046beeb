package ui

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// TestSections: rollouts, traffic, who gave to whom, members and what to do are seen, at 3
// and at 300 nodes.
func TestSections(t *testing.T) {
	t.Parallel()
	for nodes, want := range map[int][]string{
		3:   {"Last rollouts", "3 of 3", "sent 1.2 × the image", "Free on disk", "of 252 GiB", "k3s crictl rmi --prune # on edge-003"},
		300: {"Last rollouts", "296 of 299", "others", "2 versions run side by side: 0.9.0 on 296, 0.3.1 on 1", "k3s crictl rmi --prune # on each of these", "28 more"},
	} {
		p := open(t, madeUp(t, "-nodes", fmt.Sprint(nodes), "-images", map[int]string{3: "5", 300: "40"}[nodes]), "/")
		p.says("Traffic of this node")
		p.says("Who gave to whom")
		p.says("shop/cart-5d88 edge-002 cart:v3 ImagePullBackOff is not announced seeder announce cart:v3 # on a host that has it")
		for _, text := range want {
			p.says(text)
		}
		if got := eval[[]float64](p, `[...document.querySelectorAll('.chart path')].map(e => e.getBoundingClientRect().height)`); len(got) != 2 || got[0] < 30 || got[1] < 5 {
			t.Errorf("%d nodes: the lines of the chart are %v high", nodes, got)
		}
		if got := eval[int](p, `document.querySelectorAll('.flows td').length`); got < 9 || got > 11*11 {
			t.Errorf("%d nodes: %d cells say who gave to whom", nodes, got)
		}
	}
}

// TestImageUnfolds: the row of an image unfolds by itself, and its digest is copied.
func TestImageUnfolds(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nodes", "3", "-images", "5"}, {"-nodes", "300", "-images", "40"}} {
		p := open(t, madeUp(t, args...), "/")
		p.waitFor("the script runs", `document.documentElement.classList.contains('script')`)
		if eval[bool](p, `document.querySelector('.image dl').checkVisibility()`) {
			t.Error("it is unfolded from the start")
		}
		p.run(chromedp.Click(chromedp.CSS(".image summary")))
		p.waitFor("it is unfolded", `document.querySelector('.image dl').checkVisibility() && document.querySelector('.image .copy').checkVisibility()`)
		p.says("seeder announce --rollback grafana/loki:v1")
		p.says("000000000000 1 MiB for linux/amd64")
		p.says("linux/amd64, linux/arm64")
		p.run(chromedp.Click(chromedp.CSS(".image .copy")))
		p.waitFor("the digest is copied", `document.querySelector('.image .copy').textContent === 'Copied'`)
	}
}

// TestCopyWithoutClipboard: where the browser has no clipboard for the page, the button
// selects the digest, which stays selected while the page is updated.
func TestCopyWithoutClipboard(t *testing.T) {
	t.Parallel()
	base := strings.Replace(madeUp(t, "-nodes", "3", "-images", "5"), "127.0.0.1", lanName, 1)
	p := open(t, base, "/")
	p.waitFor("the script runs", `document.documentElement.classList.contains('script')`)
	if eval[bool](p, `isSecureContext || !!navigator.clipboard`) {
		t.Fatal("the page has a clipboard")
	}
	p.run(chromedp.Click(chromedp.CSS(".image summary")), chromedp.Click(chromedp.CSS(".image .copy")))
	const selected = `getSelection().toString() === document.querySelector('.image .copy').dataset.copy`
	p.waitFor("the digest is selected", selected)
	if got := eval[string](p, `document.querySelector('.image .copy').textContent`); got != "Copy" {
		t.Errorf("the button says %q", got)
	}
	p.isUpdated()
	if !eval[bool](p, selected) {
		t.Errorf("after an update %q is selected", eval[string](p, `getSelection().toString()`))
	}
}

// TestRowsAreKeyed: while images come and go above and below, the row of an image is the
// same element, unfolded if it was, with the focus if it had it, and rows keep their order.
func TestRowsAreKeyed(t *testing.T) {
	t.Parallel()
	base, become := changing(t, "-nodes", "3", "-images", "4")
	p := open(t, base, "/")
	p.waitFor("the script runs", `document.documentElement.classList.contains('script')`)
	const row = "k3s-dashboard:v1"
	p.do(`for (const e of document.querySelectorAll('.images tbody tr')) e.was = e.dataset.key`)
	p.run(chromedp.Focus(chromedp.CSS(`tr[data-key="`+row+`"] summary`)), chromedp.KeyEvent(kb.Enter))
	p.waitFor("it is unfolded", `!!document.querySelector('tr[data-key="`+row+`"] details[open]')`)
	for _, c := range []struct {
		images int
		want   string // the rows: as they were, and which is unfolded
	}{
		{6, "grafana/loki:v1 k3s-dashboard-proxy:v1=new k3s-dashboard:v1=open registry.example.com/acme/vision:v1 registry.example.net/acme/ingest:v1=new registry.example.org/shop/checkout:v1"},
		{1, "k3s-dashboard:v1=open"},
		{3, "grafana/loki:v1=new k3s-dashboard:v1=open registry.example.org/shop/checkout:v1=new"},
	} {
		become(3, c.images)
		p.waitFor(fmt.Sprint(c.images, " images"), fmt.Sprintf(`document.querySelectorAll('.images tbody tr').length === %d`, c.images))
		got := eval[string](p, `[...document.querySelectorAll('.images tbody tr')].map(e => e.dataset.key + (e.was === e.dataset.key ? '' : '=new') + (e.querySelector('details').open ? '=open' : '')).join(' ')`)
		if got != c.want {
			t.Errorf("%d images: the rows are %q, want %q", c.images, got, c.want)
		}
		if got := eval[string](p, `document.activeElement.closest('summary')?.closest('tr')?.dataset.key || document.activeElement.tagName`); got != row {
			t.Errorf("%d images: the focus is on %s, want %s", c.images, got, row)
		}
		p.do(`for (const e of document.querySelectorAll('.images tbody tr')) e.was = e.dataset.key`)
	}
}

// TestUnfoldedStaysUnfolded: what is unfolded in a section stays so when something new
// comes before it, and what has the focus keeps it when the order of rows changes.
func TestUnfoldedStaysUnfolded(t *testing.T) {
	t.Parallel()
	base, become := changing(t, "-nodes", "60", "-images", "16")
	p := open(t, base, "/")
	p.waitFor("the script runs", `document.documentElement.classList.contains('script')`)
	p.do(`for (const e of document.querySelectorAll('section > details')) e.open = e.was = true`)
	p.run(chromedp.Focus(chromedp.CSS("#members")))
	become(120, 40)
	p.says("2 versions run side by side")
	if got := eval[[]string](p, `[...document.querySelectorAll('section > details')].map(e => e.dataset.key + ' ' + e.open + ' ' + e.was)`); fmt.Sprint(got) != "[images true true transfers true true rollouts true true members true true]" {
		t.Errorf("what was unfolded is %q", got)
	}
	if got := eval[string](p, `document.activeElement.id || document.activeElement.tagName`); got != "members" {
		t.Errorf("the focus is on %s", got)
	}

	base, become = changing(t, "-nodes", "1", "-images", "12")
	p = open(t, base, "/")
	p.waitFor("the script runs", `document.documentElement.classList.contains('script')`)
	const rows = `[...document.querySelectorAll('.images tbody tr')].map(e => e.dataset.key).indexOf('k3s-dashboard-proxy:v1')`
	before := eval[int](p, rows)
	p.run(chromedp.Focus(chromedp.CSS(`tr[data-key="k3s-dashboard-proxy:v1"] summary`)))
	become(3, 12)
	p.says("k3s-dashboard-proxy:v1 failed on edge-003")
	if after := eval[int](p, rows); before != 2 || after != 1 {
		t.Errorf("the row was at %d and is at %d, want one before", before, after)
	}
	if got := eval[string](p, `document.activeElement.closest('tr')?.dataset.key || document.activeElement.tagName`); got != "k3s-dashboard-proxy:v1" {
		t.Errorf("after the rows changed places the focus is on %s", got)
	}
}

// TestPhone: on a phone an image that is ready everywhere takes one line, and unfolds.
func TestPhone(t *testing.T) {
	t.Parallel()
	p := open(t, madeUp(t, "-nodes", "3", "-images", "5"), "/", chromedp.EmulateViewport(390, 844))
	p.says("Last rollouts")
	if got := eval[[]float64](p, `[...document.querySelectorAll('.images tr.done')].map(e => e.getBoundingClientRect().height)`); len(got) != 3 || got[0] > 48 || got[1] > 48 || got[2] > 48 {
		t.Errorf("the rows of ready images are %v high, want one line each", got)
	}
	if got := eval[string](p, `document.querySelector('.images tr.done').innerText.trim().split(/\s+/).join(' ')`); got != "k3s-dashboard:v1 ✓ 3 of 3" {
		t.Errorf("a ready image says %q", got)
	}
	p.run(chromedp.Click(chromedp.CSS(".images tr.done summary")))
	p.waitFor("it is unfolded", `document.querySelector('.images tr.done dl').checkVisibility() && document.querySelector('.images tr.done td[data-node]').checkVisibility()`)
}
