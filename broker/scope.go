package broker

import (
	"fmt"
	"slices"
	"strings"
)

// Limits of what one request may name. One more is refused with ErrInvalid.
const (
	MaxScopes        = 64  // scopes in one list
	MaxScopeBytes    = 256 // bytes in one scope
	MaxAudiences     = 32  // audiences in one list
	MaxAudienceBytes = 256 // bytes in one audience
)

// Scopes is a set of scope tokens (RFC 6749 §3.3), sorted and without duplicates. Make one with
// ParseScopes; the zero value is the empty set.
type Scopes []string

// ParseScopes checks each scope's form and returns the set. A duplicate, a character outside RFC
// 6749's, or more than the limits is ErrInvalid.
func ParseScopes(list []string) (Scopes, error) {
	if err := parseNames("scope", list, MaxScopes, MaxScopeBytes, isScopeByte); err != nil {
		return nil, err
	}
	set := Scopes(slices.Clone(list))
	slices.Sort(set)
	return set, nil
}

// Contains reports whether scope is in the set. Scopes are compared byte by byte: there are no
// wildcards and no hierarchy.
func (s Scopes) Contains(scope string) bool {
	_, found := slices.BinarySearch(s, scope)
	return found
}

// Intersect returns the scopes that are in both sets.
func (s Scopes) Intersect(t Scopes) Scopes {
	return s.filter(t.Contains)
}

// Minus returns the scopes of s that are not in t.
func (s Scopes) Minus(t Scopes) Scopes {
	return s.filter(func(scope string) bool { return !t.Contains(scope) })
}

func (s Scopes) filter(keep func(string) bool) Scopes {
	var out Scopes
	for _, scope := range s {
		if keep(scope) {
			out = append(out, scope)
		}
	}
	return out
}

// String joins the set with spaces, as the scope claim and parameter do (RFC 8693 §4.2).
func (s Scopes) String() string { return strings.Join(s, " ") }

// Audiences is a set of audience names, sorted and without duplicates.
type Audiences []string

// ParseAudiences checks each name's form: printable ASCII without space, quote and backslash, as
// for scopes. A name is compared byte by byte with the registered ones, so a URL with another
// letter case or a trailing dot is another audience.
func ParseAudiences(list []string) (Audiences, error) {
	if err := parseNames("audience", list, MaxAudiences, MaxAudienceBytes, isScopeByte); err != nil {
		return nil, err
	}
	set := Audiences(slices.Clone(list))
	slices.Sort(set)
	return set, nil
}

// Contains reports whether the audience is in the set.
func (a Audiences) Contains(audience string) bool {
	_, found := slices.BinarySearch(a, audience)
	return found
}

func (a Audiences) filter(keep func(string) bool) Audiences {
	return Audiences(Scopes(a).filter(keep))
}

// isScopeByte is RFC 6749's NQCHAR: %x21 / %x23-5B / %x5D-7E.
func isScopeByte(c byte) bool {
	return c > ' ' && c <= 0x7e && c != '"' && c != '\\'
}

func parseNames(kind string, list []string, maxCount, maxBytes int, ok func(byte) bool) error {
	field := kind + "s"
	if len(list) > maxCount {
		return invalid(field, "has %d entries; at most %d are allowed", len(list), maxCount)
	}
	seen := make(map[string]bool, len(list))
	for i, name := range list {
		field := fmt.Sprintf("%ss[%d]", kind, i)
		switch {
		case name == "":
			return invalid(field, "is empty; leave it out, or name a %s", kind)
		case len(name) > maxBytes:
			return invalid(field, "has %d bytes; at most %d are allowed", len(name), maxBytes)
		case seen[name]:
			return invalid(field, "is a duplicate; name each %s once", kind)
		}
		for j := range len(name) {
			if !ok(name[j]) {
				return invalid(field, "has a character that is not allowed at byte %d; use printable ASCII without space, quote and backslash", j)
			}
		}
		seen[name] = true
	}
	return nil
}
