package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/errandhq/errand/sdk/wire"
)

// Require is middleware for routes that need a token with all the scopes. The handler finds the
// grant by FromContext, and its request's context ends with the cause ErrRevoked if the grant dies
// while it runs.
//
// Refusals are RFC 6750's: 401 with a Bearer challenge, whose error_description is one of this
// package's reasons; 403 insufficient_scope; and 503 with Retry-After, when the token may well be
// good but nobody can say so now. Require panics on a scope that no token can have.
func (v *Verifier) Require(scopes ...string) func(http.Handler) http.Handler {
	for _, scope := range scopes {
		if scope == "" || strings.ContainsFunc(scope, notNameRune) {
			panic(fmt.Sprintf("verify: %q is not a scope (RFC 6749 §3.3)", scope))
		}
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			grant, err := v.authorize(r, scopes)
			if err != nil {
				v.refuse(w, err, scopes)
				return
			}
			ctx, cancel, err := v.Watch(context.WithValue(r.Context(), grantKey{}, grant), grant)
			if err != nil {
				v.refused(r.Context(), err, grant)
				v.refuse(w, err, scopes)
				return
			}
			defer cancel()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

func (v *Verifier) authorize(r *http.Request, scopes []string) (*Grant, error) {
	token, err := bearer(r.Header)
	if err != nil {
		v.refused(r.Context(), err, nil)
		return nil, err
	}
	return v.Verify(r.Context(), token, v.config.Peer(r), scopes...)
}

// bearer returns the token of the one Authorization header (RFC 6750 §2.1). Tokens in the query or
// the body are not looked for.
func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	if len(values) > 1 {
		return "", malformed("there is more than one Authorization header")
	}
	if len(values) == 0 {
		return "", ErrMissing
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrMissing
	}
	return token, nil
}

// refuse answers a request that will not be served.
func (v *Verifier) refuse(w http.ResponseWriter, err error, scopes []string) {
	why := reason(err)
	h := w.Header()
	switch why {
	case ErrStale, ErrBusy:
		h.Set("Retry-After", "1")
		v.writeProblem(w, http.StatusServiceUnavailable, wire.ProblemVerifierStale, why)
	case ErrScope:
		h.Set("WWW-Authenticate", v.challenge("insufficient_scope", why)+fmt.Sprintf(`, scope="%s"`, strings.Join(scopes, " ")))
		v.writeProblem(w, http.StatusForbidden, "", why)
	case ErrMissing:
		// No error code: the client was only not asked yet (RFC 6750 §3.1).
		h.Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s"`, v.config.Audience))
		v.writeProblem(w, http.StatusUnauthorized, "", why)
	default:
		h.Set("WWW-Authenticate", v.challenge("invalid_token", why))
		v.writeProblem(w, http.StatusUnauthorized, "", why)
	}
}

func (v *Verifier) challenge(code string, why sentinel) string {
	return fmt.Sprintf(`Bearer realm="%s", error="%s", error_description="%s"`, v.config.Audience, code, why)
}

// writeProblem writes an RFC 9457 body; without a name its type is about:blank.
func (v *Verifier) writeProblem(w http.ResponseWriter, status int, name string, why sentinel) {
	problem := wire.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: string(why)}
	if name != "" {
		problem.Type = v.config.Issuer + "/problems/" + name
	}
	body, err := json.Marshal(problem)
	if err != nil {
		panic(fmt.Sprintf("verify: a problem of plain values must marshal: %v", err))
	}
	w.Header().Set("Content-Type", wire.TypeProblem)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
