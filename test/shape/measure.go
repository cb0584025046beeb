package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// shape is what was counted.
type shape struct {
	module               string
	packages             []*pkg
	exported, documented int
	inits                int
}

// pkg is one package. Its types are counted over all of its files.
type pkg struct {
	path, name string
	lines      int
	files      map[string]int // lines by path
	functions  map[string]int // lines by name
	methods    map[string]int // by type
	fields     map[string]int // by type
	interfaces map[string]int // methods by type
	imports    []string       // of this module
}

// measure reads the module at root.
func measure(root string) (*shape, error) {
	b, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("find the module: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	s := &shape{module: strings.TrimSpace(strings.TrimPrefix(first, "module"))}
	byDir := map[string]*pkg{}
	for _, top := range []string{"cmd", "internal", "p2p", "store"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (d.Name() == "testdata" || strings.HasSuffix(d.Name(), "test")):
				return filepath.SkipDir
			case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			rel, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			p := byDir[rel]
			if p == nil {
				p = &pkg{path: s.module + "/" + filepath.ToSlash(rel), files: map[string]int{}, functions: map[string]int{},
					methods: map[string]int{}, fields: map[string]int{}, interfaces: map[string]int{}}
				byDir[rel] = p
				s.packages = append(s.packages, p)
			}
			return s.read(p, path)
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", top, err)
		}
	}
	return s, nil
}

func (s *shape) read(p *pkg, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, b, parser.ParseComments)
	if err != nil {
		return err
	}
	if ast.IsGenerated(f) {
		return nil
	}
	lines := bytes.Count(b, []byte("\n"))
	p.name, p.files[path], p.lines = f.Name.Name, lines, p.lines+lines
	for _, i := range f.Imports {
		if name, err := strconv.Unquote(i.Path.Value); err == nil && strings.HasPrefix(name, s.module+"/") {
			p.imports = append(p.imports, name)
		}
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			s.function(p, set, d)
		case *ast.GenDecl:
			s.types(p, d)
		}
	}
	return nil
}

func (s *shape) function(p *pkg, set *token.FileSet, d *ast.FuncDecl) {
	name, exported := d.Name.Name, d.Name.IsExported()
	if d.Recv == nil && name == "init" {
		s.inits++
	}
	if d.Recv != nil {
		receiver := typeName(d.Recv.List[0].Type)
		p.methods[receiver]++
		name, exported = receiver+"."+name, exported && ast.IsExported(receiver)
	}
	if d.Body != nil {
		p.functions[name] = set.Position(d.End()).Line - set.Position(d.Pos()).Line + 1
	}
	s.export(exported, d.Doc)
}

func (s *shape) types(p *pkg, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		t, ok := spec.(*ast.TypeSpec)
		if !ok {
			continue
		}
		doc := t.Doc
		if doc == nil {
			doc = d.Doc
		}
		s.export(t.Name.IsExported(), doc)
		switch x := t.Type.(type) {
		case *ast.StructType:
			p.fields[t.Name.Name] = x.Fields.NumFields()
		case *ast.InterfaceType:
			p.interfaces[t.Name.Name] = x.Methods.NumFields()
		}
	}
}

func (s *shape) export(exported bool, doc *ast.CommentGroup) {
	if !exported {
		return
	}
	s.exported++
	if doc != nil {
		s.documented++
	}
}

// typeName is the type of a receiver, without pointer and type parameters.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.IndexListExpr:
		return typeName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return "?"
}

func (s *shape) functionLengths() []int {
	var out []int
	for _, p := range s.packages {
		for _, n := range p.functions {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// most is the largest value that pick gives for any package, and where it is.
func (s *shape) most(pick func(*pkg) map[string]int) (value int, where string) {
	for _, p := range s.packages {
		for name, n := range pick(p) {
			if n > value || n == value && p.path+name < where {
				value, where = n, strings.TrimPrefix(p.path, s.module+"/")+"."+name
			}
		}
	}
	return value, where
}

func (s *shape) largestPackage() (int, string) {
	return s.most(lines)
}

func (s *shape) mainPackage() (int, string) {
	return s.most(func(p *pkg) map[string]int {
		if p.name != "main" {
			return nil
		}
		return map[string]int{p.name: p.lines}
	})
}

func (s *shape) largestFile() (value int, where string) {
	for _, p := range s.packages {
		for file, n := range p.files {
			if n > value {
				value, where = n, file
			}
		}
	}
	return value, where
}

func (s *shape) longestFunction() (int, string) {
	return s.most(func(p *pkg) map[string]int { return p.functions })
}

func (s *shape) mostMethods() (int, string) {
	return s.most(methods)
}

func (s *shape) mostFields() (int, string) {
	return s.most(fields)
}

func lines(p *pkg) map[string]int { return map[string]int{p.name: p.lines} }

func methods(p *pkg) map[string]int { return p.methods }

func fields(p *pkg) map[string]int {
	fields := map[string]int{}
	for name, n := range p.fields { // configuration is a list of settings, however long
		if !strings.HasSuffix(name, "Config") && !strings.HasSuffix(name, "Options") {
			fields[name] = n
		}
	}
	return fields
}

func (s *shape) widestInterface() (int, string) {
	return s.most(func(p *pkg) map[string]int { return p.interfaces })
}

// depth is how many imports of this module follow each other at most.
func (s *shape) depth() (value int, where string) {
	byPath := map[string]*pkg{}
	for _, p := range s.packages {
		byPath[p.path] = p
	}
	depths := map[string]int{}
	var of func(path string) int
	of = func(path string) int {
		if d, ok := depths[path]; ok || byPath[path] == nil {
			return d
		}
		d := 0
		for _, i := range byPath[path].imports {
			d = max(d, of(i)+1)
		}
		depths[path] = d
		return d
	}
	for _, p := range s.packages {
		if d := of(p.path); d > value {
			value, where = d, strings.TrimPrefix(p.path, s.module+"/")
		}
	}
	return value, where
}
