package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/errandhq/errand/"
	root   = "../.."
)

// mayImport says which of our packages a package may import, for non-test files; all else is
// forbidden. "*" allows everything of ours.
var mayImport = map[string][]string{
	"sdk/wire":       {},
	"keys":           {},
	"broker":         {},
	"store":          {},
	"broker/devmode": {},

	"broker/identity": {"broker"},
	"broker/registry": {"broker"},
	"broker/audit":    {"broker"},
	"store/redis":     {"broker"},
	"store/memory":    {"broker"},
	"store/storetest": {"broker"},
	"store/redistest": {},
	"broker/policy":   {"broker", "broker/registry"},
	"broker/report":   {"broker", "broker/audit", "broker/registry"},
	"broker/token":    {"broker", "keys", "sdk/wire"},
	"broker/feed":     {"broker", "keys", "sdk/wire"},
	"broker/console":  {"broker", "broker/audit", "broker/registry", "broker/report"},
	"broker/httpapi": {"broker", "broker/identity", "broker/registry", "broker/policy", "broker/feed", "broker/audit",
		"broker/report", "broker/console", "keys", "sdk/wire"},
	"broker/server": {"broker", "broker/identity", "broker/registry", "broker/policy", "broker/token", "broker/feed",
		"broker/audit", "broker/report", "broker/httpapi", "broker/console", "broker/devmode",
		"store", "store/redis", "store/memory", "keys", "sdk/wire"},

	"sdk/internal/steer":         {},
	"sdk/internal/sse":           {},
	"sdk":                        {"sdk/wire", "sdk/internal/steer", "sdk/internal/sse"},
	"sdk/verify":                 {"sdk/wire", "sdk/internal/steer", "sdk/internal/sse"},
	"sdk/verify/verifyecho":      {"sdk/verify"},
	"sdk/verify/verifygrpc":      {"sdk/verify"},
	"sdk/sdkoauth2":              {"sdk"},
	"sdk/sdkgrpc":                {"sdk"},
	"sdk/verify/verifyspiffe":    {"sdk", "sdk/verify", "sdk/wire"},
	"sdk/examples/export":        {"sdk"},
	"sdk/examples/echo":          {"sdk/verify", "sdk/verify/verifyecho", "sdk/verify/verifyspiffe"},
	"sdk/examples/grpc/shop":     {},
	"sdk/examples/grpc/client":   {"sdk", "sdk/sdkgrpc", "sdk/examples/grpc/shop"},
	"sdk/examples/grpc/server":   {"sdk/verify", "sdk/verify/verifygrpc", "sdk/verify/verifyspiffe", "sdk/examples/grpc/shop"},
	"sdk/examples/orders":        {"sdk/verify", "sdk/verify/verifyspiffe"},
	"sdk/brokertest":             {"*"},
	"cmd/errand":                 {"*"},
	"cmd/errand-k8s":             {"sdk", "sdk/wire"},
	"cmd/errand/internal/bench":  {"*"},
	"cmd/errand/internal/config": {"*"},
	"cmd/errand/internal/exec":   {"sdk", "sdk/wire"},
	"cmd/errand/internal/demo":   {"*"},
	"cmd/errand/internal/api":    {"sdk", "sdk/verify/verifyspiffe", "sdk/wire"},

	"sdk/verify/outside/golangjwt":      {"sdk/verify/outside/internal/lines"},
	"sdk/verify/outside/jwx":            {"sdk/verify/outside/internal/lines"},
	"sdk/verify/outside/internal/lines": {},
}

// fences says who may import a third party's packages, for non-test files. "x/..." is x and all
// below it. The longest matching prefix of an import counts.
var fences = map[string][]string{
	"github.com/labstack/echo/":                      {"broker/httpapi", "sdk/verify/verifyecho", "sdk/examples/echo"},
	"github.com/redis/go-redis/":                     {"store/redis"},
	"github.com/tinylib/msgp/":                       {"store/redis"},
	"github.com/go-jose/go-jose/":                    {"keys", "broker/token", "broker/feed", "sdk/verify"},
	"github.com/spiffe/go-spiffe/":                   {"broker/identity", "broker/devmode", "sdk", "sdk/brokertest", "sdk/sdkgrpc", "sdk/verify/verifyspiffe", "sdk/examples/..."},
	"github.com/spiffe/go-spiffe/v2/spiffeid":        {"broker/...", "store/...", "sdk/...", "cmd/..."},
	"google.golang.org/grpc":                         {"broker/devmode", "broker/identity", "sdk", "sdk/sdkgrpc", "sdk/verify/verifyspiffe", "sdk/verify/verifygrpc", "sdk/examples/grpc/..."},
	"golang.org/x/oauth2":                            {"sdk/sdkoauth2"},
	"github.com/cedar-policy/":                       {"broker/policy"},
	"github.com/prometheus/":                         {"broker/server"},
	"github.com/goccy/go-yaml":                       {"broker/registry", "cmd/errand/internal/config"},
	"github.com/spf13/cobra":                         {"cmd/..."},
	"github.com/go-json-experiment/json":             {"broker", "broker/httpapi", "sdk/verify"},
	"pgregory.net/rapid":                             {"store/storetest"},
	"go.uber.org/goleak":                             {},
	"github.com/google/go-cmp":                       {"store/storetest"},
	"github.com/rogpeppe/go-internal":                {},
	"github.com/golang-jwt/":                         {"sdk/verify/outside/golangjwt"},
	"github.com/MicahParks/":                         {"sdk/verify/outside/golangjwt"},
	"github.com/lestrrat-go/":                        {"sdk/verify/outside/jwx"},
	"k8s.io/":                                        {"cmd/errand-k8s"},
	"github.com/errandhq/errand/cmd/errand/internal": {"cmd/errand"},
	"github.com/errandhq/errand/sdk/internal/steer":  {"sdk", "sdk/verify", "sdk/brokertest"},
}

// source is one parsed Go file.
type source struct {
	pkg  string // folder from the root, with slashes
	name string
	test bool
	file *ast.File
	set  *token.FileSet // that file's positions are in
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		out = append(out, source{
			pkg: filepath.ToSlash(rel), name: filepath.Base(path), test: strings.HasSuffix(path, "_test.go"), file: file, set: set,
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func imports(f *ast.File) []string {
	var out []string
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			out = append(out, path)
		}
	}
	return out
}

// TestImports holds the house together: who may import whom.
func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		allowed, listed := mayImport[s.pkg]
		if !listed {
			t.Errorf("package %s is not in the import table; say there what it may import", s.pkg)
			continue
		}
		for _, path := range imports(s.file) {
			if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(allowed, "*") && !slices.Contains(allowed, ours) {
				t.Errorf("%s/%s imports %s; the import table forbids it", s.pkg, s.name, ours)
			}
			checkFence(t, s, path)
		}
	}
}

// TestImportGroups: no other import stands right beside one of the standard library.
func TestImportGroups(t *testing.T) {
	for _, s := range sources(t) {
		line, standard := 0, false // of the import before
		for i, path := range imports(s.file) {
			host, _, _ := strings.Cut(path, "/")
			above, before := line, standard
			line, standard = s.set.Position(s.file.Imports[i].Pos()).Line, !strings.Contains(host, ".")
			if line == above+1 && standard != before {
				t.Errorf("%s/%s:%d: %q needs an empty line before it: the standard library's imports stand by themselves", s.pkg, s.name, line, path)
			}
		}
	}
}

func checkFence(t *testing.T, s source, path string) {
	longest := ""
	for prefix := range fences {
		if strings.HasPrefix(path, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	if longest != "" && !within(s.pkg, fences[longest]) {
		t.Errorf("%s/%s imports %s; only %v may", s.pkg, s.name, path, fences[longest])
	}
}

func within(pkg string, allowed []string) bool {
	return slices.ContainsFunc(allowed, func(a string) bool {
		tree, ok := strings.CutSuffix(a, "/...")
		return a == pkg || ok && (pkg == tree || strings.HasPrefix(pkg, tree+"/"))
	})
}

// TestVerifierStaysSmall: a program that imports the verifier gets no gRPC, no go-spiffe and no Redis
// client with it, through whomever.
func TestVerifierStaysSmall(t *testing.T) {
	sources(t) // what go list reads counts for the test cache as well
	for _, name := range []string{"go.mod", "go.sum"} {
		if _, err := os.ReadFile(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	list := exec.Command("go", "list", "-deps", "./sdk/verify")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if !slices.Contains(packages, module+"sdk/verify") {
		t.Fatalf("go list printed %q", out)
	}
	for _, path := range packages {
		for _, heavy := range []string{"google.golang.org/", "github.com/spiffe/", "github.com/redis/", "github.com/labstack/", "github.com/prometheus/"} {
			if strings.HasPrefix(path, heavy) {
				t.Errorf("sdk/verify brings %s", path)
			}
		}
	}
}

// TestPackageDocs wants exactly one package comment in each package.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if _, ok := docs[s.pkg]; !ok {
			docs[s.pkg] = nil
		}
		if s.file.Doc != nil {
			docs[s.pkg] = append(docs[s.pkg], s.name)
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments (%v); write one", pkg, len(files), files)
		}
	}
}

// TestFunctionsFitAScreen wants no function over 70 lines, tests aside.
func TestFunctionsFitAScreen(t *testing.T) {
	const most = 70
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				if n := files.Position(f.End()).Line - files.Position(f.Pos()).Line + 1; n > most {
					t.Errorf("%s: %s has %d lines; at most %d fit a screen", path, f.Name.Name, n, most)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTopLevel keeps the top of the tree what a newcomer is told that it is.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"cmd", "broker", "store", "keys", "sdk", "deploy", "go.mod", "go.sum", "README.md", "LICENSE",
		"CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "Makefile"}
	ignored, err := os.ReadFile(filepath.Join(root, ".gitignore")) // what the README has one make there
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(ignored)) {
		allowed = append(allowed, strings.Trim(strings.TrimSpace(name), "/"))
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s does not belong at the top of the tree", e.Name())
		}
	}
}
