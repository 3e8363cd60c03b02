package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// fromYAML sets the key to the value of a node.
func (s setting) fromYAML(node ast.Node) error {
	switch list := s.value.Addr().Interface().(type) {
	case *[]string:
		return listFromYAML(list, node)
	case *[]Federation:
		return elementsFromYAML(list, node, "trust domains", "{trust_domain: partner.example, file: /etc/errand/partner.pem}")
	case *[]Certificate:
		return elementsFromYAML(list, node, "certificates", "{certificate: SHA-256, name: ada, role: viewer}")
	}
	text, err := scalar(node)
	if err != nil {
		return err
	}
	return s.fromText(text)
}

func listFromYAML(list *[]string, node ast.Node) error {
	sequence, ok := node.(*ast.SequenceNode)
	if !ok {
		return errors.New("must be a list, as [a, b], or [] for none")
	}
	out := []string{}
	for _, element := range sequence.Values {
		text, err := scalar(element)
		if err != nil {
			return fmt.Errorf("has an element that %w", err)
		}
		out = append(out, text)
	}
	*list = out
	return nil
}

// elementsFromYAML reads a list of mappings. of and example are what to write.
func elementsFromYAML[E any](list *[]E, node ast.Node, of, example string) error {
	sequence, ok := node.(*ast.SequenceNode)
	if !ok {
		return fmt.Errorf("must be a list of %s, as [%s]", of, example)
	}
	out := make([]E, len(sequence.Values))
	for i, element := range sequence.Values {
		pairs, ok := element.(ast.MapNode)
		if !ok {
			return &placed{element, fmt.Errorf("[%d] must have keys with values below it, as %s", i, example)}
		}
		known := map[string]setting{}
		for _, s := range fields("", reflect.ValueOf(&out[i]).Elem()) {
			known[s.name] = s
		}
		for pair := pairs.MapRange(); pair.Next(); {
			name := pair.Key().GetToken().Value
			s, ok := known[name]
			if !ok {
				return &placed{pair.Key(), fmt.Errorf("[%d].%s is not a key; there are %s", i, name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))}
			}
			if err := s.fromYAML(pair.Value()); err != nil {
				return &placed{pair.Value(), fmt.Errorf("[%d].%s %w", i, name, err)}
			}
		}
	}
	*list = out
	return nil
}

// placed is an error that is about one node of a value.
type placed struct {
	node ast.Node
	err  error
}

func (p *placed) Error() string { return p.err.Error() }

// scalar is the text of a single value, as it was written.
func scalar(node ast.Node) (string, error) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.LiteralNode:
		return n.Value.Value, nil
	case *ast.NullNode:
		return "", errors.New("has no value; write one, or take the line out for the default")
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		return "", errors.New("has an anchor, alias or tag; write the value itself")
	case ast.ScalarNode:
		return n.GetToken().Value, nil
	}
	return "", errors.New("must be a single value")
}

// fromText sets the key to the value that a text stands for.
func (s setting) fromText(text string) error {
	switch v := s.value.Addr().Interface().(type) {
	case *string:
		*v = text
	case *[]string:
		*v = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	case *[]Federation, *[]Certificate:
		file, err := parser.ParseBytes([]byte(text), 0)
		if err != nil || len(file.Docs) != 1 || file.Docs[0].Body == nil {
			return errors.New("must be YAML as in the file, on one line")
		}
		return s.fromYAML(file.Docs[0].Body)
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("is %q; it must be a whole number", text)
		}
		*v = n
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("is %q; it must be a duration with its unit, as 30s, 10m or 24h", text)
		}
		*v = d
	default:
		panic(fmt.Sprintf("config: %s has the type %s, which cannot be read", s.name, s.value.Type()))
	}
	return nil
}

// text is the value as it would be written into the file, without what is secret.
func (s setting) text() string {
	switch v := s.value.Interface().(type) {
	case time.Duration:
		return duration(v)
	case int:
		return strconv.Itoa(v)
	case string:
		if s.name == "store.redis.url" && v != "" {
			return maskedURL(v)
		}
		return masked(v)
	case []string:
		return strings.Join(v, ", ")
	case []Federation:
		var names []string
		for _, f := range v {
			names = append(names, f.TrustDomain)
		}
		return strings.Join(names, ", ")
	case []Certificate:
		var all []string
		for _, c := range v {
			all = append(all, fmt.Sprintf("%s %s %s", c.Name, c.Role, c.Certificate))
		}
		return strings.Join(all, ", ")
	}
	panic("config: " + s.name)
}

// masked takes the passwords out of a URL.
func masked(s string) string {
	if !strings.Contains(s, "://") || !strings.ContainsAny(s, "@?#") {
		return s
	}
	return maskedURL(s)
}

// maskedURL is masked for what must be a URL, also when it is none.
func maskedURL(s string) string {
	u, query, ok := plainURL(s)
	if !ok {
		return "(not a URL; not shown, since it may hold a password)"
	}
	for name := range query {
		if strings.Contains(strings.ToLower(name), "pass") {
			query.Set(name, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}

// plainURL takes a URL apart whose parts are what they seem to be. A password with a slash, a question
// mark or a hash in it ends before its @, and what is left of it looks like a host, a path or a query.
func plainURL(s string) (u *url.URL, query url.Values, ok bool) {
	u, err := url.Parse(s)
	if err != nil || !strings.Contains(s, "://") || u.Opaque != "" || u.Fragment != "" {
		return nil, nil, false
	}
	query, err = url.ParseQuery(u.RawQuery)
	return u, query, err == nil && !strings.Contains(u.Host+u.Path+u.RawQuery, "@")
}

// duration writes 24h for 24h0m0s.
func duration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// Shown is one line of config show.
type Shown struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// FromEnvironment has the variables that have set a key, in its order.
func (c *Config) FromEnvironment() []string {
	var out []string
	for _, s := range c.settings() {
		if name := c.origins[s.name].Variable; name != "" {
			out = append(out, name)
		}
	}
	return out
}

// Show has all keys with their values, and where each came from. Passwords in URLs are masked.
func (c *Config) Show() []Shown {
	var out []Shown
	for _, s := range c.settings() {
		out = append(out, Shown{s.name, s.text(), c.origins[s.name].String()})
	}
	return out
}
