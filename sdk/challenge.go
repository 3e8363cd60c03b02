package sdk

import (
	"fmt"
	"net/http"
	"strings"
)

// InsufficientScope is the refusal of a resource server to which the token was good, and not enough
// (RFC 6750 §3.1). CheckScope makes one of a response.
type InsufficientScope struct {
	Audience string   // that the token was for
	Scopes   []string // that the server asks for; none if it does not say
	Had      []string // that the token had
}

// Error says what to ask for.
func (e *InsufficientScope) Error() string {
	text := fmt.Sprintf("%s wants more than the scopes [%s] of the token", e.Audience, strings.Join(e.Had, " "))
	if len(e.Scopes) > 0 {
		text += fmt.Sprintf(": [%s]; ask for them in the task's ceiling and in the TokenRequest", strings.Join(e.Scopes, " "))
	}
	return text
}

// CheckScope returns an *InsufficientScope for a response 403 with error="insufficient_scope" to a
// request that HTTPClient or Transport has sent, and nil for any other. It is a function of its own,
// and not an error of the request, since an http.RoundTripper hands on every response that it has
// got. The body stays as it is, and is the caller's to close.
func CheckScope(resp *http.Response) error {
	if resp == nil || resp.StatusCode != http.StatusForbidden {
		return nil
	}
	bearer := challenge(resp.Header)
	if bearer["error"] != "insufficient_scope" {
		return nil
	}
	e := &InsufficientScope{Scopes: strings.Fields(bearer["scope"])}
	if resp.Request != nil {
		if token, ok := resp.Request.Context().Value(carriedKey{}).(*Token); ok && token != nil {
			e.Audience, e.Had = token.Audience, token.Scopes
		}
	}
	return e
}

// rejected reports a 401 that says that the token was the reason (RFC 6750 §3.1).
func rejected(resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized && strings.EqualFold(challenge(resp.Header)["error"], "invalid_token")
}

// challenge returns the parameters of the Bearer challenges of a response, by lower-case name; of
// several of one name, the first (RFC 9110 §11.6.1).
func challenge(h http.Header) map[string]string {
	params := map[string]string{}
	for _, s := range h.Values("WWW-Authenticate") {
		scheme := ""
		for s = strings.TrimLeft(s, " \t,"); s != ""; s = strings.TrimLeft(s, " \t,") {
			word := s[:tokenLen(s)]
			if word == "" {
				s = s[1:] // nothing that belongs here
				continue
			}
			s = strings.TrimLeft(s[len(word):], " \t")
			if !strings.HasPrefix(s, "=") {
				scheme = strings.ToLower(word)
				continue
			}
			var value string
			value, s = parameter(strings.TrimLeft(s[1:], " \t"))
			name := strings.ToLower(word)
			if _, there := params[name]; scheme == "bearer" && !there {
				params[name] = value
			}
		}
	}
	return params
}

// parameter reads a token or a quoted string from the beginning of s.
func parameter(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		n := tokenLen(s)
		return s[:n], s[n:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// tokenLen is how much of s is a token (RFC 9110 §5.6.2).
func tokenLen(s string) int {
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return i
		}
	}
	return len(s)
}
