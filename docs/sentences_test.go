package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Sentences of people who are read at once: the median and the 90th percentile of words of
// three well-read projects (litefs, restic, serf) are 17 and 28 to 33.
const (
	medianWords   = 17
	longWords     = 35 // at the 90th percentile
	longestWords  = 60
	fewestToCount = 15 // sentences; fewer have no percentiles
)

// prosePages are the pages that people read from end to end.
var prosePages = []string{"../README.md", "../CONTRIBUTING.md", "design.md", "behaviour.md", "decisions.md", "rollout.md", "operations.md", "security.md", "compatibility.md", "reliability.md", "protocol.md", "metrics.md"}

// TestSentences: the sentences of each page are short enough to be read once.
func TestSentences(t *testing.T) {
	t.Parallel()
	for _, page := range prosePages {
		all := sentences(read(t, page))
		slices.SortStableFunc(all, func(a, b string) int { return words(a) - words(b) })
		if len(all) < fewestToCount {
			t.Errorf("%s: %d sentences were found", page, len(all))
			continue
		}
		median, long, longest := words(all[len(all)/2]), words(all[len(all)*9/10]), all[len(all)-1]
		t.Logf("%s: %d sentences, %d words in the median, %d at the 90th percentile, %d at most", page, len(all), median, long, words(longest))
		if median > medianWords || long > longWords || words(longest) > longestWords {
			t.Errorf("%s: want at most %d words in the median, %d at the 90th percentile, %d in all; the longest sentences:", page, medianWords, longWords, longestWords)
			for _, s := range all[max(len(all)*9/10, len(all)-12):] {
				t.Logf("%d words: %s", words(s), s)
			}
		}
	}
}

// TestSentencesAreFound: what counts as a sentence.
func TestSentencesAreFound(t *testing.T) {
	t.Parallel()
	const page = "# A heading\n\nOne sentence, of v1.2 and `a. b`.\nAnother (see [x](y.md)). A third: it\nends here.\n\n- An item\n- Two. More.\n\n```sh\nnot. this\n```\n\n| a | b |\n|---|---|\n| word | A cell. With two. |\n"
	want := []string{"One sentence, of v1.2 and CODE.", "Another (see x).", "A third: it ends here.", "An item", "Two.", "More.", "A cell.", "With two."}
	if got := sentences(page); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if n := words(want[0]); n != 6 {
		t.Errorf("%d words", n)
	}
}

var (
	comment   = regexp.MustCompile(`(?s)<!--.*?-->`)
	code      = regexp.MustCompile("``.+?``|`[^`]+`")
	target    = regexp.MustCompile(`\]\([^)]*\)|\]\[[^\]]*\]|[\[\]*]|!\[`)
	listStart = regexp.MustCompile(`^\s*(?:[-*]|\d+\.)\s+|^>\s*`)
	end       = regexp.MustCompile(`[.?!][")]*(?:\s+|$)`)
)

// sentences are those of paragraphs, list items, and table cells that end in a full stop.
func sentences(page string) []string {
	page = comment.ReplaceAllString(fence.ReplaceAllString(page, ""), "")
	var out []string
	var block strings.Builder
	flush := func() {
		text := code.ReplaceAllString(strings.Join(strings.Fields(block.String()), " "), "CODE")
		out = append(out, split(target.ReplaceAllString(text, ""))...)
		block.Reset()
	}
	for line := range strings.Lines(page) {
		switch line = strings.TrimRight(line, "\n"); {
		case strings.HasPrefix(line, "#"), strings.TrimSpace(line) == "", strings.HasPrefix(line, "[") && strings.Contains(line, "]: "):
			flush()
		case strings.HasPrefix(line, "|"):
			flush()
			for cell := range strings.SplitSeq(line, " | ") {
				if cell = strings.Trim(cell, "| "); strings.HasSuffix(cell, ".") || strings.Contains(cell, ". ") {
					block.WriteString(cell)
					flush()
				}
			}
		case listStart.MatchString(line):
			flush()
			block.WriteString(listStart.ReplaceAllString(line, "") + " ")
		default:
			block.WriteString(line + " ")
		}
	}
	flush()
	return out
}

// split cuts a text after its full stops.
func split(text string) []string {
	var out []string
	for text != "" {
		at := end.FindStringIndex(text)
		if at == nil {
			return append(out, text)
		}
		out, text = append(out, strings.TrimSpace(text[:at[1]])), text[at[1]:]
	}
	return out
}

// words counts those of a sentence; code counts as one.
func words(sentence string) int {
	n := 0
	for word := range strings.FieldsSeq(sentence) {
		if strings.ContainsFunc(word, func(r rune) bool { return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' }) {
			n++
		}
	}
	return n
}
