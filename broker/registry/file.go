package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Defaults of a workload's quotas.
const (
	DefaultMaxTasks  = 1_000
	DefaultMaxGrants = 10_000
)

// File is the form of the registry file. Every field is required unless its comment says otherwise.
type File struct {
	Workloads []Workload `yaml:"workloads"`
	Audiences []Audience `yaml:"audiences"`
	Sources   []Source   `yaml:"sources"` // Optional.
}

// Workload registers one SPIFFE ID.
type Workload struct {
	ID       string `yaml:"id"`
	Owner    string `yaml:"owner"`
	Contact  string `yaml:"contact"` // Optional.
	Purpose  string `yaml:"purpose"`
	Boundary string `yaml:"boundary"`  // Optional.
	Risk     string `yaml:"risk"`      // Optional: low, medium, high or critical.
	ReviewBy string `yaml:"review_by"` // Optional: a day, as 2027-01-31.

	// Ceiling has the scopes by audience.
	Ceiling map[string][]string `yaml:"ceiling"`

	MaxLife   string `yaml:"max_life"`   // Optional: of its tokens, and those in its name, as 5m. 15m at most, and when left out.
	MaxTasks  int    `yaml:"max_tasks"`  // Optional: live at once. 1000 when left out.
	MaxGrants int    `yaml:"max_grants"` // Optional: unexpired at once. 10000 when left out.
}

// Audience registers one resource server.
type Audience struct {
	Name    string   `yaml:"name"`
	Owner   string   `yaml:"owner"`
	Purpose string   `yaml:"purpose"` // Optional.
	Risk    string   `yaml:"risk"`    // Optional.
	Hosts   []string `yaml:"hosts"`   // Host names or addresses, with a port unless it is 443. Optional: none means that the SDK sends no token by itself.
	Scopes  []string `yaml:"scopes"`
	Servers []string `yaml:"servers"`  // SPIFFE IDs of its instances. Optional: without one nobody can read its feed.
	Details []string `yaml:"details"`  // Optional: the types of authorization details (RFC 9396) that the server knows.
	MaxLife string   `yaml:"max_life"` // Optional, as of a workload.
	Binding string   `yaml:"binding"`  // Optional: certificate (default), identity or none.
}

// byteOrderMark is what some editors begin a file with. It says nothing.
const byteOrderMark = "\ufeff"

// decode reads YAML that has nothing beyond File's fields. Its errors have the line and the column; those of keys that
// are not known are joined.
func decode(text []byte) (File, error) {
	text = bytes.TrimPrefix(text, []byte(byteOrderMark))
	tokens := lexer.Tokenize(string(text))
	if i := slices.IndexFunc(tokens, func(t *token.Token) bool { return t.Type == token.TagType }); i >= 0 { // some make the decoder panic
		return File{}, fmt.Errorf("registry: [%d:%d] there is a tag; write the value itself", tokens[i].Position.Line, tokens[i].Position.Column)
	}
	parsed, err := parser.Parse(tokens, 0)
	if err != nil {
		return File{}, notYAML(err)
	}
	var unknown []error
	for _, doc := range parsed.Docs {
		unknown = append(unknown, unknownKeys("", doc.Body, reflect.TypeFor[File]())...)
	}
	if unknown != nil {
		return File{}, errors.Join(unknown...)
	}
	var file File
	decoder := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict(), yaml.DisallowUnknownField())
	switch err := decoder.Decode(&file); {
	case errors.Is(err, io.EOF):
		return File{}, errors.New("registry: the file is empty; register audiences and workloads")
	case err != nil:
		return File{}, notYAML(err)
	}
	if err := decoder.Decode(&File{}); !errors.Is(err, io.EOF) {
		return File{}, errors.New("registry: there is a second document after ---; put everything into one")
	}
	return file, nil
}

// notYAML is an error of the decoder, on one line.
func notYAML(err error) error {
	text := yaml.FormatError(err, false, false)
	if strings.Contains(text, "\t") || strings.Contains(text, "tab character") {
		text = strings.ReplaceAll(text, "\t", `\t`) + "; indent with spaces, since YAML takes no tab there"
	}
	return fmt.Errorf("registry: %s", text)
}

// unknownKeys finds the keys in a node that t does not have, a struct or a list of them. What the node is beside that is
// for the decoder to judge, and so are aliases.
func unknownKeys(path string, node ast.Node, t reflect.Type) (unknown []error) {
	switch node := node.(type) {
	case *ast.SequenceNode:
		for i, element := range node.Values {
			if t.Kind() == reflect.Slice {
				unknown = append(unknown, unknownKeys(fmt.Sprintf("%s[%d].", strings.TrimSuffix(path, "."), i), element, t.Elem())...)
			}
		}
	case ast.MapNode:
		if t.Kind() != reflect.Struct {
			return nil
		}
		fields := map[string]reflect.Type{}
		for field := range t.Fields() {
			fields[field.Tag.Get("yaml")] = field.Type
		}
		for pair := node.MapRange(); pair.Next(); {
			name, at := pair.Key().GetToken().Value, pair.Key().GetToken().Position
			if field, ok := fields[name]; ok {
				unknown = append(unknown, unknownKeys(path+name+".", pair.Value(), field)...)
			} else if !pair.Key().IsMergeKey() {
				unknown = append(unknown, fmt.Errorf("registry: [%d:%d] %s%s is not a key; there are %s",
					at.Line, at.Column, path, name, strings.Join(slices.Sorted(maps.Keys(fields)), ", ")))
			}
		}
	}
	return unknown
}

func (r *Registry) addAudience(a Audience) error {
	if _, err := broker.ParseAudiences([]string{a.Name}); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if _, ok := r.audiences[a.Name]; ok {
		return errors.New("name is a duplicate; register each audience once")
	}
	if strings.TrimSpace(a.Owner) == "" {
		return errors.New("owner is missing; every audience has somebody who answers for it")
	}
	scopes, err := broker.ParseScopes(a.Scopes)
	if err != nil {
		return fmt.Errorf("scopes: %w", err)
	}
	if len(scopes) == 0 {
		return errors.New("scopes is missing; list the scopes that the server knows")
	}
	out := broker.AudienceRegistration{Name: a.Name, Owner: a.Owner, Purpose: a.Purpose, Risk: a.Risk, Scopes: scopes}
	if out.Hosts, err = hosts(a.Hosts); err != nil {
		return err
	}
	for _, server := range a.Servers {
		id, err := workloadID(server)
		if err != nil {
			return fmt.Errorf("servers: %w", err)
		}
		out.Servers = append(out.Servers, id)
	}
	if out.DetailTypes, err = broker.ParseDetailTypes(a.Details); err != nil {
		return err
	}
	if out.MaxLife, err = life(a.MaxLife); err != nil {
		return err
	}
	if out.Binding, err = broker.ParseBinding(a.Binding); err != nil {
		return err
	}
	r.audiences[a.Name] = out
	return nil
}

func (r *Registry) addWorkload(w Workload) error {
	id, err := workloadID(w.ID)
	if err != nil {
		return fmt.Errorf("id: %w", err)
	}
	if _, ok := r.workloads[id]; ok {
		return errors.New("id is a duplicate; register each workload once")
	}
	if strings.TrimSpace(w.Owner) == "" {
		return errors.New("owner is missing; name the team or person who answers for this workload")
	}
	if strings.TrimSpace(w.Purpose) == "" {
		return errors.New("purpose is missing; say why this workload exists")
	}
	out := broker.WorkloadRegistration{
		ID: id, Owner: w.Owner, Contact: w.Contact, Purpose: w.Purpose, Boundary: w.Boundary, Risk: w.Risk,
		MaxTasks: cmp.Or(w.MaxTasks, DefaultMaxTasks), MaxGrants: cmp.Or(w.MaxGrants, DefaultMaxGrants),
	}
	if out.MaxTasks < 0 || out.MaxGrants < 0 {
		return errors.New("max_tasks and max_grants must be positive")
	}
	if w.Risk != "" && !slices.Contains([]string{"low", "medium", "high", "critical"}, w.Risk) {
		return fmt.Errorf("risk is %q; it must be low, medium, high or critical", w.Risk)
	}
	if w.ReviewBy != "" {
		if out.ReviewBy, err = time.Parse(time.DateOnly, w.ReviewBy); err != nil {
			return fmt.Errorf("review_by is %q; it must be a day, as 2027-01-31", w.ReviewBy)
		}
	}
	if out.MaxLife, err = life(w.MaxLife); err != nil {
		return err
	}
	out.Ceiling, err = r.ceiling(w.Ceiling)
	r.workloads[id] = out
	return err
}

// ceiling wants every name to be registered, so that a misspelt one is not a silent denial later.
func (r *Registry) ceiling(in map[string][]string) (map[string]broker.Scopes, error) {
	if len(in) > broker.MaxAudiences {
		return nil, fmt.Errorf("ceiling has %d audiences; at most %d are allowed", len(in), broker.MaxAudiences)
	}
	out := map[string]broker.Scopes{}
	all := 0
	for name, list := range in {
		audience, ok := r.audiences[name]
		if !ok {
			return nil, fmt.Errorf("ceiling: audience %q is not registered under audiences", name)
		}
		scopes, err := broker.ParseScopes(list)
		if err != nil {
			return nil, fmt.Errorf("ceiling: %s: %w", name, err)
		}
		if unknown := scopes.Minus(audience.Scopes); len(unknown) > 0 {
			return nil, fmt.Errorf("ceiling: audience %q does not know the scope %q", name, unknown)
		}
		if len(scopes) == 0 {
			return nil, fmt.Errorf("ceiling: %s has no scopes; leave the audience out, or name some", name)
		}
		out[name] = scopes
		all += len(scopes)
	}
	if all > broker.MaxScopes {
		return nil, fmt.Errorf("ceiling has %d scopes; at most %d are allowed", all, broker.MaxScopes)
	}
	return out, nil
}

func workloadID(s string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%q is not a SPIFFE ID: %w", s, err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("%q has no path; it names a trust domain, not a workload", s)
	}
	return id, nil
}

func hosts(list []string) ([]string, error) {
	for _, host := range list {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), "443"
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 || name == "" || strings.ContainsAny(name, "/@?#* ") {
			return nil, fmt.Errorf("hosts: %q is not a host or host:port; leave out scheme and path", host)
		}
	}
	return slices.Clone(list), nil
}

func life(s string) (time.Duration, error) {
	if s == "" {
		return broker.MaxTokenLife, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("max_life is %q; it must be a duration, as 90s or 5m", s)
	}
	if d < broker.MinTokenLife || d > broker.MaxTokenLife {
		return 0, fmt.Errorf("max_life is %s; it must be between %s and %s", d, broker.MinTokenLife, broker.MaxTokenLife)
	}
	return d, nil
}
