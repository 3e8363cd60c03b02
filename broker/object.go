package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	strict "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a JSON object that a request brings and the broker keeps.
const (
	MaxObjectDepth  = 8         // objects and arrays inside each other, its own braces counted
	MaxObjectValues = 64        // in all of it: strings, numbers, objects, arrays and so on
	maxObjectNumber = 1<<53 - 1 // beyond it two integers can be one double (RFC 7493 §2.2)
)

// Object is a JSON object in canonical form (RFC 8785): two of them say the same exactly when they
// are equal byte for byte. Make one with ParseContext or ParseDetails; "" is none.
type Object string

// parseObject checks an object against the limits, and against most bytes in canonical form.
func parseObject(field string, text []byte, most int) (Object, error) {
	d := jsontext.NewDecoder(bytes.NewReader(text))
	if kind := d.PeekKind(); kind != '{' {
		return "", invalid(field, "is not a JSON object")
	}
	type member struct{ of, folded string }
	names := map[member]bool{}
	for values := -1; ; { // less the object itself
		token, err := d.ReadToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", invalid(field, "is not valid JSON, or has a member twice")
		}
		kind, index := d.StackIndex(d.StackDepth())
		name := kind == '{' && index%2 == 1 // the index counts names and values
		if end := token.Kind() == '}' || token.Kind() == ']'; !end && !name {
			values++
		}
		if name {
			// One reader of JSON takes such two for one member and another does not, so that what is allowed
			// need not be what is done.
			m := member{string(d.StackPointer().Parent()), fold(token.String())}
			if names[m] {
				return "", invalid(field, "has two members whose names differ in letter case alone, as %.40q", token.String())
			}
			names[m] = true
		}
		switch {
		case d.StackDepth() > MaxObjectDepth:
			return "", invalid(field, "is nested more than %d deep", MaxObjectDepth)
		case values > MaxObjectValues:
			return "", invalid(field, "has more than %d values", MaxObjectValues)
		case token.Kind() == '0' && !isExact(token.String()):
			return "", invalid(field, "has the number %.40s; beyond %d not every reader has the same one: write it as a string", token.String(), int64(maxObjectNumber))
		}
	}
	canonical := jsontext.Value(slices.Clone(text))
	if err := canonical.Canonicalize(); err != nil {
		return "", invalid(field, "is not valid JSON")
	}
	if len(canonical) > most {
		return "", invalid(field, "has %d bytes without white space; at most %d are allowed", len(canonical), most)
	}
	return Object(canonical), nil
}

// fold makes the same of names that differ in letter case alone.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, name)
}

func isExact(number string) bool {
	f, err := strconv.ParseFloat(number, 64)
	return err == nil && math.Abs(f) <= maxObjectNumber
}

// ParseContext reads a task's context; nothing at all is none. Errors are ErrInvalid.
func ParseContext(text []byte) (Object, error) {
	if len(text) == 0 {
		return "", nil
	}
	return parseObject("context", text, MaxContext)
}

// Limits of authorization details. One more is refused with ErrInvalid.
const (
	MaxDetails      = 16      // in one list
	MaxDetail       = 1 << 10 // bytes of one, in canonical form
	MaxDetailType   = 128     // bytes of a type
	MaxTokenDetails = 3 << 10 // bytes of all in one token
)

const detailsField = "authorization_details"

// Details is a set of authorization details (RFC 9396): objects, each with a type that the audience
// knows, sorted and without duplicates. Make one with ParseDetails; the zero value is the empty set.
//
// Nobody but the audience knows what a detail means, so nobody else can tell whether one is less than
// another. What may be asked for is therefore one of those that were allowed, as it is.
type Details []Object

// ParseDetails checks each detail and returns the set. A duplicate, one without a type, or more than
// the limits is ErrInvalid.
func ParseDetails(list []json.RawMessage) (Details, error) {
	if len(list) > MaxDetails {
		return nil, invalid(detailsField, "has %d entries; at most %d are allowed", len(list), MaxDetails)
	}
	var set Details
	for i, text := range list {
		field := indexed(detailsField, i)
		detail, err := parseObject(field, text, MaxDetail)
		if err != nil {
			return nil, err
		}
		switch kind := detail.Type(); {
		case kind == "":
			return nil, invalid(field+".type", "is missing, empty or no string; name a type that the audience knows")
		case len(kind) > MaxDetailType:
			return nil, invalid(field+".type", "has %d bytes; at most %d are allowed", len(kind), MaxDetailType)
		case slices.Contains(set, detail):
			return nil, invalid(field, "is a duplicate; name each detail once")
		}
		set = append(set, detail)
	}
	slices.Sort(set)
	return set, nil
}

// Type is the "type" of an authorization detail, and "" when there is none that is a string.
func (o Object) Type() string {
	var detail struct {
		Type string `json:"type"`
	}
	if err := strict.Unmarshal([]byte(o), &detail); err != nil {
		return ""
	}
	return detail.Type
}

// Minus returns the details that are not in t.
func (d Details) Minus(t Details) Details {
	var out Details
	for _, detail := range d {
		if _, found := slices.BinarySearch(t, detail); !found {
			out = append(out, detail)
		}
	}
	return out
}

// Unknown returns the types that are none of an audience's, in order.
func (d Details) Unknown(known []string) []string {
	var out []string
	for _, detail := range d {
		if kind := detail.Type(); !slices.Contains(known, kind) && !slices.Contains(out, kind) {
			out = append(out, kind)
		}
	}
	return out
}

// JSON returns the details as they stand in a token, and nil when there are none.
func (d Details) JSON() []json.RawMessage {
	var out []json.RawMessage
	for _, detail := range d {
		out = append(out, json.RawMessage(detail))
	}
	return out
}

// size is how many bytes they have together.
func (d Details) size() int {
	size := 0
	for _, detail := range d {
		size += len(detail)
	}
	return size
}

// checkToken bounds what goes into one token.
func (d Details) checkToken(field string) error {
	if size := d.size(); size > MaxTokenDetails {
		return invalid(field+detailsField, "have %d bytes; at most %d fit into one token: ask for fewer at once", size, MaxTokenDetails)
	}
	return nil
}

// ParseDetailTypes checks the list of types that an audience knows: printable ASCII without space,
// quote and backslash. A duplicate or more than the limits is ErrInvalid.
func ParseDetailTypes(list []string) ([]string, error) {
	if err := parseNames("detail", list, MaxScopes, MaxDetailType, isScopeByte); err != nil {
		return nil, err
	}
	return slices.Sorted(slices.Values(list)), nil
}
