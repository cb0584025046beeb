// Command sbom writes the SPDX document of a program: which Go modules were linked
// into it, in which version, under which licence.
//
// The modules are those that the linker recorded in the program itself. So the list
// is what is shipped, not what a go.mod asks for. The licence of a module is what
// its licence file in the module cache says; where that file is missing or unknown,
// the document says NOASSERTION.
package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/licensecheck"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// enough is the share of a licence file, in per cent, that a known licence has to
// cover. Copyright lines and notices are the rest.
const enough = 75

func main() {
	program := flag.String("program", "", "the program, as it is shipped")
	version := flag.String("version", "", "its version")
	source := flag.String("source", ".", "directory of its main module, for the module cache and its own LICENSE")
	flag.Parse()
	if err := run(context.Background(), *program, *version, *source); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program, version, source string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read the modules of %s: %w", program, err)
	}
	created, err := created()
	if err != nil {
		return err
	}
	cache, err := moduleCache(ctx, source)
	if err != nil {
		return err
	}
	main := pkg("seeder", version, licence(source))
	main.PrimaryPackagePurpose = "APPLICATION"
	doc := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      "seeder-" + version,
		DocumentNamespace: "https://spdx.org/spdxdocs/seeder-" + version,
		CreationInfo: &v2_3.CreationInfo{
			Created:  created,
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "seeder-sbom"}},
		},
		Packages: []*v2_3.Package{main, goToolchain(info.GoVersion)},
	}
	for _, m := range info.Deps {
		doc.Packages = append(doc.Packages, modulePackage(m, cache))
	}
	doc.Relationships = relationships(doc.Packages)
	return spdxjson.Write(doc, os.Stdout, spdxjson.Indent("  "))
}

// created is the time of SOURCE_DATE_EPOCH, so that equal sources give equal bytes.
func created() (string, error) {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return "", fmt.Errorf("invalid SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(epoch, 0).UTC().Format(time.RFC3339), nil
}

// moduleCache maps "path@version" to the directory of each module of the build.
func moduleCache(ctx context.Context, source string) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-json", "all")
	cmd.Dir = source
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the modules of %s: %w", source, err)
	}
	dirs := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var m struct{ Path, Version, Dir string }
		if err := d.Decode(&m); err != nil {
			return nil, fmt.Errorf("list the modules of %s: %w", source, err)
		}
		dirs[m.Path+"@"+m.Version] = m.Dir
	}
	return dirs, nil
}

func modulePackage(m *debug.Module, cache map[string]string) *v2_3.Package {
	if m.Replace != nil {
		m = m.Replace
	}
	p := pkg(m.Path, m.Version, licence(cache[m.Path+"@"+m.Version]))
	p.PackageExternalReferences = []*v2_3.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
		Locator: "pkg:golang/" + m.Path + "@" + m.Version,
	}}
	return p
}

// goToolchain stands for the standard library and the runtime, which are linked in.
func goToolchain(version string) *v2_3.Package {
	p := pkg("stdlib", strings.TrimPrefix(version, "go"), "BSD-3-Clause")
	p.PackageExternalReferences = []*v2_3.PackageExternalReference{{
		Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
		Locator: "pkg:golang/stdlib@" + strings.TrimPrefix(version, "go"),
	}}
	return p
}

func pkg(name, version, licence string) *v2_3.Package {
	return &v2_3.Package{
		PackageName: name, PackageVersion: version, PackageSPDXIdentifier: common.ElementID("Package-" + identifier(name)),
		PackageDownloadLocation: "NOASSERTION", PackageCopyrightText: "NOASSERTION",
		PackageLicenseConcluded: "NOASSERTION", PackageLicenseDeclared: licence,
	}
}

// identifier keeps the characters that an SPDX identifier may have: letters, digits,
// "." and "-".
func identifier(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-", r) {
			return r
		}
		return '-'
	}, name)
}

// relationships: the document describes the first package, which contains the others.
func relationships(packages []*v2_3.Package) []*v2_3.Relationship {
	ref := func(id common.ElementID) common.DocElementID { return common.DocElementID{ElementRefID: id} }
	main := packages[0].PackageSPDXIdentifier
	out := []*v2_3.Relationship{{RefA: ref("DOCUMENT"), RefB: ref(main), Relationship: common.TypeRelationshipDescribe}}
	for _, p := range packages[1:] {
		out = append(out, &v2_3.Relationship{RefA: ref(main), RefB: ref(p.PackageSPDXIdentifier), Relationship: common.TypeRelationshipContains})
	}
	return out
}

// licence names the licences of a directory's licence files, joined by AND.
func licence(dir string) string {
	if dir == "" {
		return "NOASSERTION"
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "NOASSERTION"
	}
	var found []string
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if cov := licensecheck.Scan(b); cov.Percent >= enough {
			for _, m := range cov.Match {
				found = append(found, m.ID)
			}
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) == 0 {
		return "NOASSERTION"
	}
	return strings.Join(found, " AND ")
}
