// Package law holds the project's rules about which package may import which, and the test that keeps them.
//
// The graph stays without cycles, every part can be read and used alone, and what a program links is what it uses. The rules
// are [rules], each with its reason; the test reads the source of every package for every operating system.
package law

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/imgtool/imgtool"
	root   = "../.."
)

// rule says what one package, or a tree of them, may import of this module.
type rule struct {
	pkg string   // a package's path in the module; with /... everything below it too
	may []string // besides everyone's: block, segment, internal/... and the package's own tree
	why string
}

// everyone lists what every package may import, unless its rule says stdlib or anything.
var everyone = []string{"block", "segment", "internal/..."}

// In place of a list of packages: nothing of this module, and no other module; or no limit.
var (
	stdlib   = []string{"the standard library alone"}
	anything = []string{"..."}
)

// rules are tried in order, and the first whose pkg matches counts. A package that none matches fails the test: whoever adds it
// decides where it stands.
var rules = []rule{
	{"block", stdlib, "everything stands on block, so that it stands on nothing: who implements a device imports no other module with it"},
	{"block/blocktest", nil, "the suite judges every device, so that it knows none"},
	{"segment", []string{"block"}, "formats plan and the engine writes; neither has to know the other"},

	{"source/...", nil, "a source brings bytes and does not know what they mean"},
	{"layer/...", nil, "a layer works over any device, so that it knows none"},
	{"compress/...", nil, "kernels are bytes in, bytes out; the formats know the containers"},
	{"partition/...", nil, "a table is read and edited on any device"},
	{"luks/...", nil, "encryption is formatted and opened over any device"},
	{"nbd/...", nil, "the protocol carries a device; which one is chosen above it"},
	{"fusefs/...", nil, "a mount shows a device; which one is chosen above it"},
	{"report/...", nil, "pictures are drawn from extents, which block has"},

	{"gzipmod/...", []string{"compress/...", "partition"}, "what is kept modifiable is chosen by partition"},
	{"gzindex/...", []string{"compress/..."}, "an index knows gzip files, not images"},
	{"inspect/...", []string{"partition"}, "file systems lie in partitions; what the disk is made of does not matter"},

	{"formats", nil, "the registry defines what a driver is; a list of drivers here would be a cycle"},
	{"formats/all", []string{"formats/..."}, "the one file that lists the drivers, in order"},
	{"formats/gz/...", []string{"formats", "compress/...", "gzipmod/...", "gzindex"}, "the driver is a thin front of the modifiable image"},
	{"formats/xz/...", []string{"formats", "compress/...", "gzipmod/..."}, "the driver is a thin front of the modifiable image"},
	{"formats/zst/...", []string{"formats", "compress/...", "gzipmod/..."}, "the driver is a thin front of the modifiable image"},
	{"formats/qcow2/...", []string{"formats", "compress/...", "luks"}, "qcow2 carries LUKS inside"},
	{"formats/...", []string{"formats", "compress/..."}, "one driver never needs another: what an image refers to goes through the gate and the registry"},
	{"ova/...", []string{"formats"}, "an OVA's disks are opened through the registry"},

	{"convert/...", []string{"formats"}, "the engine moves any device to any driver's target"},
	{"chain/...", []string{"source/...", "formats/...", "layer/...", "luks/...", "ova/...", "partition/...", "nbd/..."},
		"the place where text becomes devices names them all; nobody below it parses chains"},

	{"testimages/...", []string{"partition"}, "images for tests are made of plain bytes and tables, independent of the drivers that they try"},
	{"bench/...", stdlib, "the comparison treats imgtool as it treats its peers: as a program"},
	{"internal/...", nil, "everybody may import it, so that it imports none of them"},
	{"cmd/...", anything, "the command puts everything together"},
	{".", stdlib, "the root package is prose"},
}

// guarded lists packages that, besides tests, only those in may import.
var guarded = []rule{
	{"block/blocktest", nil, "it brings the testing package with it"},
	{"internal/peers/...", []string{"internal/peers/..."}, "it brings the testing package with it"},
	{"testimages/...", []string{"testimages/...", "cmd/imgtool"}, "made-up images are for tests, and for the command that makes them"},
	{"cmd/...", []string{"cmd/..."}, "what a library needs must not stand in a command"},
}

// matches reports whether pkg is what the pattern names: a package, or with /... also what lies below it.
func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	tree, deep := strings.CutSuffix(pattern, "/...")
	return pkg == tree || deep && strings.HasPrefix(pkg, tree+"/")
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// home returns the tree inside which packages import each other freely: the first element of the path, for a driver the first two.
func home(pkg string) string {
	first, rest, _ := strings.Cut(pkg, "/")
	if first == "formats" && rest != "" {
		second, _, _ := strings.Cut(rest, "/")
		return path.Join(first, second)
	}
	return first
}

// ruleFor returns the rule for a package.
func ruleFor(pkg string) (rule, bool) {
	i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.pkg, pkg) })
	if i < 0 {
		return rule{}, false
	}
	return rules[i], true
}

// judge returns what is wrong with one import, or "".
// Both are paths in the module; imported is "" for another module's package, and does not occur for the standard library.
func judge(pkg, imported string, test bool) string {
	if test {
		if matches("cmd/...", imported) && home(pkg) != "cmd" {
			return "nothing imports cmd"
		}
		return ""
	}
	for _, g := range guarded {
		if matches(g.pkg, imported) && !matchesAny(g.may, pkg) {
			return fmt.Sprintf("only tests may import %s: %s", imported, g.why)
		}
	}
	r, ok := ruleFor(pkg)
	switch {
	case !ok:
		return "no rule covers " + pkg
	case slices.Equal(r.may, stdlib):
		return fmt.Sprintf("%s may import only %s: %s", pkg, stdlib[0], r.why)
	case imported == "" || matchesAny(everyone, imported) || matchesAny(r.may, imported) || home(pkg) == home(imported):
		return ""
	}
	return fmt.Sprintf("%s may import only %s: %s", pkg, strings.Join(slices.Concat(r.may, everyone), ", "), r.why)
}

func TestImportLaw(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range sources(t) {
		if _, ok := ruleFor(f.pkg); !ok && !seen[f.pkg] {
			t.Errorf("no rule in internal/law covers package %s: add one, with its reason", f.pkg)
		}
		seen[f.pkg] = true
		for _, spec := range f.syntax.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if name == "C" {
				t.Errorf("%s: cgo is not used: the binary is static and is built for other systems from any one", f.name)
				continue
			}
			if spec.Name != nil && spec.Name.Name == "_" && name != "embed" && !f.test {
				t.Errorf("%s: imports %s for what its init does: what exists is listed where it is used, in a written order", f.name, name)
			}
			imported, ours := strings.CutPrefix(name, module+"/")
			if !ours {
				if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") {
					continue // the standard library
				}
				imported = ""
			}
			if wrong := judge(f.pkg, imported, f.test); wrong != "" {
				t.Errorf("%s: imports %s: %s", f.name, name, wrong)
			}
		}
	}
	if !seen["block"] {
		t.Errorf("package block was not found from %s: nothing was judged", root)
	}
}

// TestNoInit: an init function runs in an order that nobody wrote down, in every program that links the package.
func TestNoInit(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: has an init function: make what it sets up a value, or a call", f.name)
			}
		}
	}
}

// TestJudge tries the rules on imports that must be refused, and on their neighbours that must not.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		pkg, imported string
		test, legal   bool
	}{
		{"block", "segment", false, false},
		{"block", "", false, false},
		{"block", "block/blocktest", false, false},
		{"block", "block/blocktest", true, true},
		{"segment", "block", false, true},
		{"segment", "formats", false, false},
		{"formats", "formats/qcow2", false, false},
		{"formats/all", "formats/qcow2", false, true},
		{"formats/qcow2", "formats", false, true},
		{"formats/qcow2", "formats/qcow2/refcount", false, true},
		{"formats/qcow2", "luks", false, true},
		{"formats/qcow2", "gzipmod", false, false},
		{"formats/vmdk", "formats/raw", false, false},
		{"formats/vmdk", "luks", false, false},
		{"formats/vmdk", "", false, true},
		{"formats/gz", "gzipmod", false, true},
		{"formats/gz", "gzindex", false, true},
		{"gzindex", "compress/inflate", false, true},
		{"gzindex", "partition", false, false},
		{"partition", "formats", false, false},
		{"chain", "layer", false, true},
		{"chain", "convert", false, false},
		{"layer", "testimages", false, false},
		{"layer", "testimages", true, true},
		{"layer", "internal/peers", false, false},
		{"testimages", "testimages/ext4", false, true},
		{"cmd/imgtool", "testimages", false, true},
		{"cmd/imgtool", "chain", false, true},
		{"cmd/imgtool", "block/blocktest", false, false},
		{"chain", "cmd/imgtool", true, false},
		{"bench/compare", "chain", false, false},
		{"unheard/of", "block", false, false},
	} {
		if wrong := judge(c.pkg, c.imported, c.test); (wrong == "") != c.legal {
			t.Errorf("%s imports %q, test %v: legal should be %v; said %q", c.pkg, c.imported, c.test, c.legal, wrong)
		}
	}
}

// source is one Go file of the module.
type source struct {
	name   string // path from the root of the module
	pkg    string // its package's path in the module, "." for the root
	test   bool
	syntax *ast.File
}

// sources parses every Go file of the module, whatever system it is for. Programs that only `go run` or `go generate` starts
// (build tag ignore), testdata and modules inside this one are left out.
func sources(t *testing.T) []source {
	t.Helper()
	var found []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(name, d.Name())
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if ignored(syntax) {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		found = append(found, source{name: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), syntax: syntax})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// skipDir returns fs.SkipDir for folders that hold no package of the module.
func skipDir(name, base string) error {
	if name == root {
		return nil
	}
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}

// ignored reports whether a file has the build tag ignore.
func ignored(f *ast.File) bool {
	for _, group := range f.Comments {
		if group.Pos() > f.Package {
			break
		}
		for _, c := range group.List {
			if !constraint.IsGoBuild(c.Text) {
				continue
			}
			if x, err := constraint.Parse(c.Text); err == nil && x.String() == "ignore" {
				return true
			}
		}
	}
	return false
}
