package main

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"seeder/cmd/seeder/internal/cli/clitest"
	"seeder/cmd/seeder/internal/config"
)

// The man pages are made by this test, for `make man`: only a test sees the commands
// of package main and brings the generator, which the daemon's binary is spared.
var manDir = flag.String("man", "", "write the man pages and completions below this directory, as /usr/share")

// TestManPages makes the pages, and looks whether each says all that there is.
func TestManPages(t *testing.T) {
	t.Parallel()
	dir := cmp.Or(*manDir, t.TempDir())
	a, _, _ := testApp()
	root := rootCommand(a)
	writeManPages(t, root, dir)
	writeCompletions(t, dir)
	every(root, func(cmd *cobra.Command) {
		page := plainRoff(t, manFile(dir, cmd))
		clitest.WantAll(t, page, cmd.Short, cmd.CommandPath())
		for example := range strings.Lines(cmd.Example) {
			clitest.WantAll(t, page, strings.TrimSpace(example))
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			_, usage := pflag.UnquoteUsage(f)
			clitest.WantAll(t, page, "--"+f.Name, strings.TrimSpace(usage))
		})
		for line := range strings.Lines(cmd.Long) {
			clitest.WantAll(t, page, strings.TrimSpace(strings.ReplaceAll(line, "`", "")))
		}
	})
	page := plainRoff(t, filepath.Join(dir, "man", "man5", "seeder.yaml.5"))
	for _, k := range config.Keys() {
		clitest.WantAll(t, page, k.Name, k.Env(), "--"+k.Flag())
	}
	lintMan(t, dir)
}

// every calls fn for cmd and all below it that people see.
func every(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			every(c, fn)
		}
	}
}

func manFile(dir string, cmd *cobra.Command) string {
	return filepath.Join(dir, "man", "man1", strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")
}

// manDate is that of SOURCE_DATE_EPOCH, so that the same source makes the same pages.
func manDate(t *testing.T) time.Time {
	epoch, err := strconv.ParseInt(cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), "0"), 10, 64)
	if err != nil {
		t.Fatalf("SOURCE_DATE_EPOCH: %v", err)
	}
	return time.Unix(epoch, 0).UTC()
}

func writeManPages(t *testing.T, root *cobra.Command, dir string) {
	t.Helper()
	date := manDate(t)
	every(root, func(cmd *cobra.Command) {
		page := *cmd // the tree of cmd stays as it is
		page.DisableAutoGenTag = true
		page.Long = manText(cmp.Or(cmd.Long, cmd.Short+"."))
		if !cmd.HasParent() {
			page.Long += manRoot
		}
		var out bytes.Buffer
		header := &doc.GenManHeader{Title: strings.ToUpper(strings.ReplaceAll(cmd.CommandPath(), " ", "-")), Section: "1", Date: &date,
			Source: "seeder", Manual: "seeder manual"}
		if err := doc.GenMan(&page, header, &out); err != nil {
			t.Fatal(err)
		}
		writeFile(t, manFile(dir, cmd), tidyRoff(out.Bytes(), date))
	})
	data, err := os.ReadFile("../../configs/seeder.yaml")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "man", "man5", "seeder.yaml.5"), tidyRoff(md2man.Render(configPage(t, data)), date))
}

// manRoot is what only the page of seeder itself has.
const manRoot = `

# FILES
**/etc/seeder/seeder.yaml**
: the configuration; none is needed. See **seeder.yaml**(5).

**/etc/seeder/secret**
: the secret that all nodes share.

**/var/lib/seeder**
: identity, catalog and unfinished images of this node.

**/run/seeder/seeder.sock**
: where the daemon takes commands.

# ENVIRONMENT
**SEEDER_…**
: each key of the configuration, in capitals and with dots as underscores.

**NO_COLOR**
: set and not empty: no colours.

**DOCKER_HOST**
: where announce looks for Docker or Podman.
`

// manText makes markdown of a help text: its indented lines keep their layout.
func manText(text string) string {
	var out []string
	block := false
	for line := range strings.SplitSeq(text, "\n") {
		if now := strings.HasPrefix(line, "  "); now != block {
			block = now
			out = append(out, "")
		}
		if block {
			line = "  " + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// tidyRoff makes options tagged paragraphs and takes out what mandoc finds fault with.
func tidyRoff(roff []byte, date time.Time) []byte {
	for _, r := range []struct{ from, to string }{
		{`(?m)^\.nh\n`, ""},
		{`(?m)[ \t]+$`, ""},
		{`(\.TH "[^"]+" "[0-9]") "[^"]*"`, `$1 "` + date.Format(time.DateOnly) + `"`},
		{`(?:\.PP\n)?(\\fB-.*)\n\t`, ".TP\n$1\n"},
		{`(?m)^(.+)\t`, "$1 "},
		{`(?m)^default: `, ".br\ndefault: "},
		{`\.PP\n(\.EX|\.RS|\.TP|\.SH|\.PP)`, "$1"},
		{`\n{2,}`, "\n"},
	} {
		roff = regexp.MustCompile(r.from).ReplaceAll(roff, []byte(r.to))
	}
	return append(bytes.TrimSpace(roff), '\n')
}

// configPage is seeder.yaml.5 as markdown, from the comments of the shipped file.
func configPage(t *testing.T, data []byte) []byte {
	t.Helper()
	var file yaml.Node
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	top := file.Content[0]
	intro := cmp.Or(file.HeadComment, top.HeadComment)
	if intro == "" { // the parser gives the first comments of a file to its first key
		intro, top.Content[0].HeadComment, _ = strings.Cut(top.Content[0].HeadComment, "\n\n")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%% \"SEEDER.YAML\" \"5\" \"\" \"seeder\" \"seeder manual\"\n# NAME\nseeder.yaml - configuration of the seeder daemon\n\n# DESCRIPTION\n%s\n\n# KEYS\n", comment(intro))
	help := map[string]config.Key{}
	for _, k := range config.Keys() {
		help[k.Name] = k
	}
	var walk func(prefix string, node *yaml.Node)
	walk = func(prefix string, node *yaml.Node) {
		for i := 0; i+1 < len(node.Content); i += 2 {
			name, value := node.Content[i], node.Content[i+1]
			full := prefix + name.Value
			k, isKey := help[full]
			text := comment(name.HeadComment + "\n" + cmp.Or(value.LineComment, name.LineComment))
			if !isKey {
				fmt.Fprintf(&b, "### %s\n%s\n\n", full, text)
				walk(full+".", value)
				continue
			}
			if text == "" {
				text = strings.ReplaceAll(k.Usage, "`", "") + "."
			}
			fmt.Fprintf(&b, "**%s**\n: %s\n\n    default: %v; %s; --%s\n\n", full, text, showValue(k.Value), k.Env(), k.Flag())
		}
	}
	walk("", top)
	b.WriteString("# SEE ALSO\n**seeder-daemon**(1), **seeder-config-check**(1), **seeder-config-show**(1)\n")
	return []byte(b.String())
}

// comment is the text of a comment in one paragraph.
func comment(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll("\n"+s, "\n#", "\n")), " ")
}

func writeCompletions(t *testing.T, dir string) {
	t.Helper()
	for shell, file := range map[string]string{
		"bash": "bash-completion/completions/seeder",
		"zsh":  "zsh/site-functions/_seeder",
		"fish": "fish/vendor_completions.d/seeder.fish",
	} {
		a, stdout, _ := testApp()
		root := rootCommand(a)
		root.SetArgs([]string{"completion", shell})
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, file), stdout.Bytes())
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// plainRoff is a page without its markup.
func plainRoff(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`\\f[A-Z]|\\f\([A-Z]+|\\&`).ReplaceAllString(string(data), "")
	return strings.NewReplacer(`\-`, "-", `\\`, `\`, `\[char46]`, ".", `\(aq`, "'", `\e`, `\`).Replace(text)
}

// lintMan asks mandoc, which test/install.sh installs.
func lintMan(t *testing.T, dir string) {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(dir, "man", "man?", "*"))
	if err != nil || len(pages) < 15 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Log("mandoc is not installed: the pages are not checked by it")
		return
	}
	out, err := exec.CommandContext(t.Context(), mandoc, append([]string{"-T", "lint", "-W", "warning"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}
