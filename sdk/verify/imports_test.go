package verify_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestImports holds the promise of a small verifier: a resource server that links it gets the
// standard library, go-jose and the wire contract, which imports nothing but the standard library.
func TestImports(t *testing.T) {
	for dir, allowed := range map[string][]string{
		".":       {"github.com/errandhq/errand/sdk/wire", "github.com/errandhq/errand/sdk/internal/sse", "github.com/errandhq/errand/sdk/internal/steer", "github.com/go-jose/go-jose/v4", "github.com/go-jose/go-jose/v4/json"},
		"../wire": nil,

		"../internal/sse":   nil,
		"../internal/steer": nil,
		"verifyspiffe":      {"github.com/errandhq/errand/sdk/verify", "github.com/spiffe/go-spiffe/v2/..."},
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, entry.Name()), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range file.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				standard := !strings.Contains(strings.SplitN(path, "/", 2)[0], ".")
				if !standard && !slices.ContainsFunc(allowed, func(a string) bool {
					prefix, tree := strings.CutSuffix(a, "...")
					return path == a || tree && strings.HasPrefix(path, prefix)
				}) {
					t.Errorf("%s imports %s", filepath.Join(dir, entry.Name()), path)
				}
			}
		}
	}
}
