package web

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// document reads a page and checks what every page keeps to.
func document(t *testing.T, body string) *html.Node {
	t.Helper()
	if len(body) > maxPageBytes {
		t.Errorf("%d bytes, more than %d", len(body), maxPageBytes)
	}
	if !utf8.ValidString(body) {
		t.Error("no UTF-8")
	}
	for _, r := range body {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%U is in the page", r)
			break
		}
	}
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		checkElement(t, n)
		if id := attr(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("id %s twice", id)
			}
			ids[id] = true
		}
	}
	for n := range doc.Descendants() {
		if by := attr(n, "aria-labelledby"); n.Type == html.ElementNode && by != "" && !ids[by] {
			t.Errorf("<%s> is labelled by %s, which is not there", n.Data, by)
		}
	}
	return doc
}

// pageElements are those of the template: text of a member that became markup is
// most likely none of them.
var pageElements = strings.Fields(`html head meta title link script body a header h1 h2 img span bdi p time button main div
	section code dl dt dd ol ul li b small table caption thead tbody tr th td svg rect path progress details summary footer`)

func checkElement(t *testing.T, n *html.Node) {
	t.Helper()
	if !slices.Contains(pageElements, n.Data) {
		t.Errorf("<%s> is in the page", n.Data)
	}
	for _, a := range n.Attr {
		if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
			t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
		}
		if (a.Key == "href" || a.Key == "src") && a.Val != "" && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") || strings.HasPrefix(a.Val, "//") {
			t.Errorf("<%s %s=%q> leads elsewhere", n.Data, a.Key, a.Val)
		}
	}
	switch n.Data {
	case "script":
		if n.FirstChild != nil || attr(n, "src") != "/page.js" {
			t.Errorf("a script of %q", attr(n, "src"))
		}
	case "table":
		if caption := n.FirstChild; caption == nil || firstElement(n) != "caption" {
			t.Error("a table without a caption")
		}
		checkRows(t, n)
	case "svg":
		if attr(n, "class") == "chart" {
			return
		}
		at := 0
		for rect := range n.ChildNodes() {
			if attr(rect, "x") != strconv.Itoa(at) {
				t.Errorf("a part of a bar begins at %s, want %d", attr(rect, "x"), at)
			}
			width, _ := strconv.Atoi(attr(rect, "width"))
			at += width
		}
		if box := fmt.Sprintf("0 0 %d 1", at); attr(n, "viewbox") != box && attr(n, "viewBox") != box {
			t.Errorf("the parts of a bar are %d in %v", at, n.Attr)
		}
	case "th":
		if attr(n, "scope") == "" {
			t.Errorf("<th> %q has no scope", text(n))
		}
	case "div":
		if strings.HasPrefix(attr(n, "class"), "scroll") && (attr(n, "tabindex") != "0" || attr(n, "role") != "region" || attr(n, "aria-labelledby") == "") {
			t.Error("a region that scrolls is not reached by keyboard or has no name")
		}
	}
}

// checkRows: every row of a table has as many cells as its head.
func checkRows(t *testing.T, table *html.Node) {
	t.Helper()
	width := 0
	for n := range table.Descendants() {
		if n.Type != html.ElementNode || n.Data != "tr" {
			continue
		}
		cells := 0
		for c := range n.ChildNodes() {
			if c.Type == html.ElementNode {
				cells++
			}
		}
		if width == 0 {
			width = cells
		}
		if cells != width {
			t.Errorf("%q: a row of %d cells in a table of %d", text(table)[:min(40, len(text(table)))], cells, width)
		}
	}
}

func firstElement(n *html.Node) string {
	for c := range n.ChildNodes() {
		if c.Type == html.ElementNode {
			return c.Data
		}
	}
	return ""
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// text is what n says, with single spaces.
func text(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		switch {
		case d.Type == html.TextNode:
			b.WriteString(d.Data)
		case slices.Contains([]string{"td", "th", "dt", "dd", "small", "a", "li", "summary"}, d.Data):
			b.WriteByte(' ')
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}
