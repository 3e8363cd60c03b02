package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/errandhq/errand/sdk"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxFile is the largest file that is read, in bytes.
const MaxFile = 64 << 10

// Sources are what a configuration is made of.
type Sources struct {
	File    string   // the path of the YAML file
	Environ []string // NAME=value, as os.Environ has it
	Set     []string // key=value, of the command line
}

// Load reads and checks a configuration, without a look at the files that it names. The error has
// all Problems, or says why the file cannot be read. There is a Config with whatever could be
// understood whenever the file could be read.
func Load(s Sources) (*Config, error) {
	file, err := os.Open(s.File)
	if err != nil {
		return nil, unopened(err, s.File)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", s.File, MaxFile)
	}
	return Parse(text, s)
}

// unopened says what to do about a file that cannot be opened.
func unopened(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; write one with  errand config init --out %s", err, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; the user that errand runs as (%d) must be able to read it, and to enter the folders that it is in", err, os.Getuid())
	}
	return err
}

// Parse is Load with the text of the file.
func Parse(text []byte, s Sources) (*Config, error) {
	r := &reader{file: s.File, config: Default(), settings: map[string]setting{}, sections: map[string]bool{}, blamed: map[string]bool{}}
	for _, setting := range r.config.settings() {
		r.settings[setting.name] = setting
		for section := parent(setting.name); section != ""; section = parent(section) {
			r.sections[section] = true
		}
	}
	whole := r.document(text)
	r.environment(s.Environ)
	r.flags(s.Set)
	r.config.complete(s.Environ)
	for _, p := range r.config.check() {
		if whole && !r.blamed[p.Key] {
			r.problems = append(r.problems, p)
		}
	}
	slices.SortStableFunc(r.problems, byPlace)
	if len(r.problems) > 0 {
		return r.config, r.problems
	}
	return r.config, nil
}

// reader fills in a configuration.
type reader struct {
	file     string
	config   *Config
	settings map[string]setting // by key
	sections map[string]bool    // what keys begin with
	blamed   map[string]bool    // keys whose value is not what somebody wrote
	problems Problems
}

func (r *reader) refuse(o Origin, key, format string, args ...any) {
	r.problems = append(r.problems, Problem{Origin: o, Key: key, Text: fmt.Sprintf(format, args...)})
}

// at is the place of a node. A mapping's own is that of its first colon, which nobody means.
func (r *reader) at(node ast.Node) Origin {
	position := node.GetToken().Position
	return Origin{File: r.file, Line: position.Line, Column: position.Column}
}

// byteOrderMark is what some editors begin a file with. It says nothing.
const byteOrderMark = "\ufeff"

// document reads the file, and reports whether it is one mapping, as it should be.
func (r *reader) document(text []byte) bool {
	file, err := parser.ParseBytes(bytes.TrimPrefix(text, []byte(byteOrderMark)), 0)
	if err != nil {
		origin, message := Origin{}, err.Error()
		var bad yaml.Error
		if errors.As(err, &bad) && bad.GetToken() != nil {
			position := bad.GetToken().Position
			origin, message = Origin{File: r.file, Line: position.Line, Column: position.Column}, bad.GetMessage()
		}
		if strings.Contains(message, "\t") || strings.Contains(message, "tab character") {
			message = strings.ReplaceAll(message, "\t", `\t`) + "; indent with spaces, since YAML takes no tab there"
		}
		r.refuse(origin, "", "not valid YAML: %s", message)
		return false
	}
	for i, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if i > 0 {
			r.refuse(r.at(doc.Body), "", "there is a second document after ---; put everything into one")
			return false
		}
		if !r.mapping("", r.at(doc.Body), doc.Body) {
			return false
		}
	}
	return true
}

// mapping reads one level of the file, and reports whether it is a mapping at all. prefix is empty or
// ends in a dot.
func (r *reader) mapping(prefix string, at Origin, node ast.Node) bool {
	pairs, ok := node.(ast.MapNode)
	if !ok {
		what := cmp.Or(strings.TrimSuffix(prefix, "."), "the file")
		r.refuse(at, what, "must have keys with values below it: %s", strings.Join(r.known(prefix), ", "))
		return false
	}
	for pair := pairs.MapRange(); pair.Next(); {
		name := pair.Key().GetToken().Value
		key := prefix + name
		at := r.at(pair.Key())
		switch {
		case strings.Contains(name, ".") && r.settings[key].name != "": // or it could be there twice
			r.refuse(at, key, "must stand under its section: %s, below %s", last(key), parent(key))
		case r.sections[key]:
			if _, empty := pair.Value().(*ast.NullNode); !empty {
				r.mapping(key+".", at, pair.Value())
			}
		case r.settings[key].name == "":
			r.unknown(at, key, r.known(prefix))
		default:
			r.take(key, r.at(pair.Value()), func(s setting) error { return s.fromYAML(pair.Value()) })
		}
	}
	return true
}

// take gives a key its value.
func (r *reader) take(key string, at Origin, set func(setting) error) {
	if err := set(r.settings[key]); err != nil {
		var p *placed
		if errors.As(err, &p) && at.File != "" {
			at = r.at(p.node)
		}
		r.blamed[key] = true
		r.problems = append(r.problems, Problem{at, key, err.Error()})
		return
	}
	r.config.origins[key] = at
}

// environment reads the variables. An empty one counts as not set.
func (r *reader) environment(environ []string) {
	keys := map[string]string{} // by variable
	for key := range r.settings {
		keys[Variable(key)] = key
	}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "ERRAND_") || value == "" {
			continue
		}
		if key, ok := keys[name]; ok {
			r.take(key, Origin{Variable: name}, func(s setting) error { return s.fromText(value) })
			continue
		}
		r.strange(name, slices.Sorted(maps.Keys(keys)))
	}
}

// othersVariables are not ours: those that Kubernetes makes for a service called errand or errand-store,
// and those that clients use.
var othersVariables = regexp.MustCompile(`_SERVICE_(HOST|PORT)|_PORT(_|$)|^(` + sdk.EnvIdentityDir + `|ERRAND_OPERATOR_(CERT|KEY))$`)

// strange refuses a variable that is almost a key's, or has a section's name and no key's. Any other is
// for something else.
func (r *reader) strange(name string, variables []string) {
	if othersVariables.MatchString(name) {
		return
	}
	at := Origin{Variable: name}
	if near := nearest(name, variables); near != "" {
		r.refuse(at, "", "there is no such key; did you mean %s? Unset it if it is for something else", near)
		return
	}
	for section := range r.sections {
		if strings.HasPrefix(name, Variable(section)+"_") && parent(section) == "" {
			r.refuse(at, "", "there is no such key; those of %s are %s", section, strings.Join(r.known(section+"."), ", "))
		}
	}
}

func (r *reader) flags(set []string) {
	for _, pair := range set {
		key, value, ok := strings.Cut(pair, "=")
		switch {
		case !ok:
			r.refuse(Origin{Flag: true}, "", "%q must be key=value, as log.level=debug", pair)
		case r.settings[key].name == "":
			r.unknown(Origin{Flag: true}, key, r.all())
		default:
			r.take(key, Origin{Flag: true}, func(s setting) error { return s.fromText(value) })
		}
	}
}

// unknown refuses what is not a key, and says which one was perhaps meant.
func (r *reader) unknown(at Origin, key string, here []string) {
	near := nearest(key, here)
	if near == "" {
		near = nearest(key, r.all())
	}
	if near == "" { // the right name in the wrong place
		for _, other := range r.all() {
			if last(other) == last(key) {
				near = other
			}
		}
	}
	if near != "" {
		r.blamed[near] = true
		r.refuse(at, key, "is not a key; did you mean %s?", near)
		return
	}
	r.refuse(at, key, "is not a key; there are %s", strings.Join(here, ", "))
}

// all are the keys, sorted.
func (r *reader) all() []string { return slices.Sorted(maps.Keys(r.settings)) }

// known are the keys and sections right below prefix, sorted.
func (r *reader) known(prefix string) []string {
	var out []string
	for _, key := range r.all() {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, ".")
		if name = prefix + name; !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func parent(key string) string { return key[:max(0, strings.LastIndexByte(key, '.'))] }
func last(key string) string   { return key[strings.LastIndexByte(key, '.')+1:] }

// nearest is the candidate that differs least from s, and by no more than a slip of the pen.
func nearest(s string, candidates []string) string {
	best, least := "", 3
	for _, c := range candidates {
		if d := distance(strings.ToLower(s), strings.ToLower(c)); d < least && d < len(c)/2 {
			best, least = c, d
		}
	}
	return best
}

// distance is how many letters must be added, left out or changed to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
