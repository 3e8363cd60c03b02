package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeCode wants every line of Go in the README, and in that of the SDK, to stand, in that
// order, in one program of sdk/examples: what is shown is what compiles.
func TestReadmeCode(t *testing.T) {
	var programs []string
	err := filepath.WalkDir(filepath.Join(root, "sdk", "examples"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			program, err := os.ReadFile(path)
			programs = append(programs, string(program))
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "sdk/README.md"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(text), -1)
		if len(blocks) < 2 {
			t.Fatalf("%d blocks of Go in %s", len(blocks), name)
		}
		for _, block := range blocks {
			missing := ""
			for _, program := range programs {
				if missing = firstMissing(block[1], program); missing == "" {
					break
				}
			}
			if missing != "" {
				t.Errorf("%s: no program of sdk/examples has this line where it should be: %s", name, missing)
			}
		}
	}
}

func firstMissing(block, program string) string {
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		_, rest, ok := strings.Cut(program, line)
		if !ok {
			return line
		}
		program = rest
	}
	return ""
}

// TestReadmeNamesTwoCommands: the two that a stranger starts with are there, and are the first.
func TestReadmeNamesTwoCommands(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	first := regexp.MustCompile("(?s)```sh\n(.*?)```").FindSubmatch(text)
	lines := strings.Split(strings.TrimSpace(string(first[1])), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "go run ./cmd/errand demo") || !strings.HasPrefix(lines[1], "make test") {
		t.Errorf("the first commands of the README are %q", lines)
	}
}
