package ui

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
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

// TestImageUnfolds: the row of an image unfolds by itself, its digest is copied, and it
// stays unfolded while the page is updated; without JavaScript, too, but for the copying.
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
		p.waitFor("the digest is copied, or selected", `document.querySelector('.image .copy').textContent === 'Copied' || getSelection().toString() === document.querySelector('.image .copy').dataset.copy`)
		before := eval[string](p, `document.getElementById('asof').dateTime`)
		p.waitFor("an update", fmt.Sprintf(`document.getElementById('asof').dateTime !== %q`, before))
		if got := eval[[]string](p, `[...document.querySelectorAll('.images tbody tr:has(.image[open])')].map(e => e.dataset.key)`); len(got) != 1 || got[0] != "grafana/loki:v1" {
			t.Errorf("%v: unfolded are %q", args, got)
		}
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
