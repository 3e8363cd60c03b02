package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// fromYAML sets the key to the value of a node.
func (s setting) fromYAML(node ast.Node) error {
	if list, ok := s.value.Addr().Interface().(*[]string); ok {
		return listFromYAML(list, node)
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
	case string:
		return masked(v)
	case []string:
		return strings.Join(v, ", ")
	}
	panic("config: " + s.name)
}

// masked takes the password out of a URL.
func masked(s string) string {
	if !strings.Contains(s, "://") || !strings.Contains(s, "@") {
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "(not a URL; not shown, since it may hold a password)"
	}
	return u.Redacted()
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

// Show has all keys with their values, and where each came from. Passwords in URLs are masked.
func (c *Config) Show() []Shown {
	var out []Shown
	for _, s := range c.settings() {
		out = append(out, Shown{s.name, s.text(), c.origins[s.name].String()})
	}
	return out
}
