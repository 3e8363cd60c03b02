package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/errandhq/errand/sdk/wire"
)

// Refusal is the answer to a request that is not served: RFC 6750's 401 with a Bearer challenge whose
// error_description is one of this package's reasons, and which names the resource's metadata if
// Config.Resource is set (RFC 9728 §5.1); 403, with insufficient_scope and the scopes
// that it takes, or without a challenge when no other token would help; and 503 with Retry-After when
// the token may well be good but nobody can say so now.
type Refusal struct {
	Status int
	Header http.Header
	Body   []byte // a problem (RFC 9457)
	Err    error  // matches one of this package's errors; its detail is for the log
}

// Write writes the refusal.
func (f *Refusal) Write(w http.ResponseWriter) {
	maps.Copy(w.Header(), f.Header)
	w.WriteHeader(f.Status)
	_, _ = w.Write(f.Body)
}

func (v *Verifier) refusal(err error) *Refusal {
	why := reason(err)
	f := &Refusal{Err: err, Header: http.Header{"Content-Type": {wire.TypeProblem}, "Cache-Control": {"no-store"}}}
	problem := "about:blank"
	switch why {
	case ErrStale:
		problem = v.unavailable(f, wire.ProblemVerifierStale)
	case ErrBusy:
		problem = v.unavailable(f, wire.ProblemVerifierBusy)
	case ErrForbidden:
		f.Status = http.StatusForbidden
	case ErrScope:
		f.Status = http.StatusForbidden
		v.challenge(f, "insufficient_scope", why)
	case ErrMissing:
		// No error code: the client was only not asked yet (RFC 6750 §3.1).
		f.Status = http.StatusUnauthorized
		v.challenge(f, "", why)
	default:
		f.Status = http.StatusUnauthorized
		v.challenge(f, "invalid_token", why)
	}
	f.Body = problemBody(wire.Problem{Type: problem, Title: http.StatusText(f.Status), Status: f.Status, Detail: string(why)})
	return f
}

// unavailable returns the problem's type, whose page is the broker's.
func (v *Verifier) unavailable(f *Refusal, name string) string {
	f.Status = http.StatusServiceUnavailable
	f.Header.Set("Retry-After", "1")
	return v.config.Issuer + "/problems/" + name
}

// challenge says which token would be good (RFC 6750 §3).
func (v *Verifier) challenge(f *Refusal, code string, why sentinel) {
	text := fmt.Sprintf(`Bearer realm="%s"`, v.config.Audience)
	if code != "" {
		text += fmt.Sprintf(`, error="%s", error_description="%s"`, code, why)
	}
	if f.Status == http.StatusUnauthorized && v.metadata != "" {
		text += fmt.Sprintf(`, resource_metadata="%s"`, v.metadata)
	}
	var need *insufficient
	if errors.As(f.Err, &need) {
		text += fmt.Sprintf(`, scope="%s"`, strings.Join(need.scopes, " "))
	}
	f.Header.Set("WWW-Authenticate", text)
}

func problemBody(problem wire.Problem) []byte {
	body, err := json.Marshal(problem)
	if err != nil {
		panic(fmt.Sprintf("verify: a problem of plain values must marshal: %v", err))
	}
	return append(body, '\n')
}
