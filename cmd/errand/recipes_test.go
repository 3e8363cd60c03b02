package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/testscript"
)

// recipe writes a part of a recipe in deploy/recipes as a script: of a YAML file the commands at a path of
// names and numbers, the command of a container as Kubernetes would run it; of a systemd unit the command lines of a
// setting, as systemd would run them.
func recipe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: recipe FILE PATH SCRIPT")
	}
	text, err := os.ReadFile(filepath.Join(recipes, args[0]))
	ts.Check(err)
	var lines []string
	if filepath.Ext(args[0]) == ".service" {
		lines = unitLines(ts, string(text), args[1])
	} else {
		lines, err = yamlLines(text, args[1])
		ts.Check(err)
	}
	if strings.HasSuffix(args[1], ".command") { // of a container: one command line, without a shell
		lines = []string{containerLine(ts, lines)}
	}
	if len(lines) == 0 {
		ts.Fatalf("%s has no %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte("set -eu\n"+strings.Join(lines, "\n")+"\n"), 0o600))
}

// recipes is where they are, whatever folder a script is in.
var recipes = func() string {
	dir, err := filepath.Abs(root + "/deploy/recipes")
	if err != nil {
		panic(err)
	}
	return dir
}()

// unitLines does what systemd does with specifiers, and leaves out where programs are.
func unitLines(ts *testscript.TestScript, text, setting string) (lines []string) {
	specifiers := strings.NewReplacer("%t", ts.Getenv("RUNTIME"), "%n", "nightly-export.service", "/usr/local/bin/", "")
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), setting+"="); ok {
			lines = append(lines, specifiers.Replace(strings.TrimPrefix(command, "-")))
		}
	}
	return lines
}

// containerLine does what Kubernetes does with $(NAME), which stays where there is no such variable.
func containerLine(ts *testscript.TestScript, words []string) string {
	for i, text := range words {
		words[i] = api.Quote(variable.ReplaceAllStringFunc(text, func(all string) string {
			if value := ts.Getenv(all[2 : len(all)-1]); value != "" {
				return value
			}
			return all
		}))
	}
	return strings.Join(words, " ")
}

var variable = regexp.MustCompile(`\$\([A-Z_]+\)`)

func yamlLines(text []byte, path string) ([]string, error) {
	var at any
	if err := yaml.Unmarshal(text, &at); err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(path, ".") {
		switch v := at.(type) {
		case map[string]any:
			at = v[name]
		case []any:
			n, err := strconv.Atoi(name)
			if err != nil || n >= len(v) {
				return nil, fmt.Errorf("there is no %s in %s", name, path)
			}
			at = v[n]
		}
	}
	switch v := at.(type) {
	case string:
		return []string{v}, nil
	case []any:
		var lines []string
		for _, each := range v {
			lines = append(lines, fmt.Sprint(each))
		}
		return lines, nil
	}
	return nil, fmt.Errorf("there are no commands at %s", path)
}
