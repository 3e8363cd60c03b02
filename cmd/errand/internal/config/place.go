package config

import (
	"fmt"
	"strings"
)

// Origin says where a value came from. The zero Origin is the default.
type Origin struct {
	File         string // with Line and Column, from 1
	Line, Column int
	Variable     string // of the environment
	Flag         bool   // --set on the command line
}

func (o Origin) String() string {
	switch {
	case o.File != "":
		return fmt.Sprintf("%s:%d:%d", o.File, o.Line, o.Column)
	case o.Variable != "":
		return "environment " + o.Variable
	case o.Flag:
		return "--set"
	}
	return "default"
}

// Problem is one mistake.
type Problem struct {
	Origin Origin // of the value that is wrong; zero when it is missing
	Key    string // empty when it is about the whole file
	Text   string // reads on from the key: "is 5m; it must be …", or "[1].file is …"
}

func (p Problem) String() string {
	out := strings.TrimSpace(p.Key + " " + p.Text)
	if strings.HasPrefix(p.Text, "[") { // an element of a list
		out = p.Key + p.Text
	}
	if p.Origin == (Origin{}) {
		return out
	}
	return p.Origin.String() + ": " + out
}

// Problems are all mistakes of a configuration.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Origin says where the value of a key came from.
func (c *Config) Origin(key string) Origin { return c.origins[key] }

// problem is a mistake in the value of a key.
func (c *Config) problem(key, format string, args ...any) Problem {
	return Problem{Origin: c.origins[key], Key: key, Text: fmt.Sprintf(format, args...)}
}
