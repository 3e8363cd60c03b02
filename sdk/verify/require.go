package verify

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Require is Middleware for routes that need a token with all the scopes.
func (v *Verifier) Require(scopes ...string) func(http.Handler) http.Handler {
	return v.Middleware(Scope(scopes...))
}

// Middleware lets a request through if its token is good and meets the requirements, and else
// writes the Refusal. The handler finds the grant by FromContext. Its request's context ends with
// the cause ErrRevoked if the grant dies while it runs, and with ErrExpired when the token has
// expired, as Watch does. From then on its writes fail with that cause, those that wait for the client,
// too; and when it returns the client gets a Refusal if nothing of an answer was sent, and else sees that
// the transfer was broken off (http.ErrAbortHandler). A connection that the handler has hijacked is
// closed. KeepInFlight opts a route out of all that.
func (v *Verifier) Middleware(reqs ...Requirement) func(http.Handler) http.Handler {
	if slices.Contains(reqs, nil) {
		panic("verify: a requirement is nil")
	}
	reqs = slices.Clone(reqs)
	keep := slices.Contains(reqs, KeepInFlight())
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			grant, refusal := v.Authorize(r, reqs...)
			if refusal != nil {
				refusal.Write(w)
				return
			}
			ctx := NewContext(r.Context(), grant)
			if keep {
				next.ServeHTTP(w, r.WithContext(ctx))
				return
			}
			ctx, cancel, err := v.Watch(ctx, grant)
			if err != nil {
				v.refused(r.Context(), err, grant)
				v.refusal(err).Write(w)
				return
			}
			defer cancel()
			answer := watch(ctx, w)
			defer answer.finish() // also when the handler panics
			next.ServeHTTP(answer, r.WithContext(ctx))
			if cause, sent := answer.finish(); cause != nil {
				v.breakOff(r, answer, grant, cause, sent)
			}
		})
	}
}

// breakOff keeps a client from taking for whole what was stopped half-way: it sees a refusal if nothing
// was sent, and else a transfer that breaks.
func (v *Verifier) breakOff(r *http.Request, answer *watched, grant *Grant, cause error, sent bool) {
	if sent {
		panic(http.ErrAbortHandler)
	}
	w := answer.ResponseWriter
	clear(w.Header())
	maps.Copy(w.Header(), answer.first)
	v.refused(r.Context(), cause, grant)
	v.refusal(cause).Write(w)
}

// Authorize answers one request, for frameworks that have another kind of middleware: exactly one of
// the results is nil. Follow it with Watch, unless KeepInFlight is among the requirements; what a
// handler writes after the end of its context is then for the framework to stop.
func (v *Verifier) Authorize(r *http.Request, reqs ...Requirement) (*Grant, *Refusal) {
	token, err := bearer(r.Header)
	if err != nil {
		v.refused(r.Context(), err, nil)
		return nil, v.refusal(err)
	}
	grant, err := v.Verify(r.Context(), token, v.config.Peer(r), reqs...)
	if err != nil {
		return nil, v.refusal(err)
	}
	return grant, nil
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
