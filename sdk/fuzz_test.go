package sdk_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk"
)

// Whatever answers, the error has the status, and is ErrUnavailable exactly when that is 500 or more.
func FuzzProblem(f *testing.F) {
	f.Add(403, `{"type":"https://broker/problems/denied","title":"No","missing":{"ticket":"x"}}`, "1")
	f.Add(410, `{"type":"https://broker/problems/task-ended","state":"revoked"}`, "")
	f.Add(503, `<html>`, "Fri, 31 Dec 1999 23:59:59 GMT")
	f.Add(302, `null`, "-9223372036854775808")
	f.Add(500, `{"title":7}`, "99999999999999999999")
	f.Add(429, `{}`, "9223372036854775807")
	f.Fuzz(func(t *testing.T, status int, body, retry string) {
		resp := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {retry}}}
		e := sdk.Problem(resp, []byte(body))
		if e.Status != status || e.RetryAfter < 0 || e.Error() == "" {
			t.Errorf("got %+v", e)
		}
		if errors.Is(e, sdk.ErrUnavailable) != (status >= 500) || errors.Is(e, nil) || errors.Is(e, sdk.ErrEndUnconfirmed) {
			t.Errorf("%d matches the wrong kinds", status)
		}
	})
}

// A challenge that does not name the scheme and the error never costs a token.
func FuzzChallenge(f *testing.F) {
	f.Add(invalidToken)
	f.Add(`Basic realm="a", Bearer error="invalid_token"`)
	f.Add(`Bearer realm="error=invalid_token"`)
	f.Add(`Bearer,error=`)
	f.Fuzz(func(t *testing.T, challenge string) {
		resp := &http.Response{StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}}
		lower := strings.ToLower(challenge)
		if sdk.Rejected(resp) && !(strings.Contains(lower, "bearer ") && strings.Contains(lower, "error") && strings.Contains(lower, "invalid_token")) {
			t.Errorf("%q", challenge)
		}
		resp.StatusCode = http.StatusForbidden
		if sdk.Rejected(resp) {
			t.Errorf("%q with a 403", challenge)
		}
	})
}
