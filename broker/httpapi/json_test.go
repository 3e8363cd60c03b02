package httpapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// FuzzDecode: what is accepted is valid JSON in the lenient decoder's eyes too, and says the same
// there; what is refused is a malformed or too large request, and never anything else.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"name":"n","purpose":"p","tokens":[{"audience":"orders","ttl_seconds":60}]}`,
		`{"name":"n","Name":"m"}`, `{"name":"n","name":"m"}`, `{"name":"\ud800"}`, `[]`, `null`, `{"lease_seconds":1e400}`, `{}{}`,
		strings.Repeat(`{"name":`, 40), "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, "/v1/tasks", strings.NewReader(body))
		r.Header.Set("Content-Type", wire.TypeJSON)
		var strictly, leniently wire.BeginRequest
		if err := decode(httptest.NewRecorder(), r, MaxBody, &strictly); err != nil {
			if !as[*malformed](err) && err != errTooLarge {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if err := json.Unmarshal([]byte(body), &leniently); err != nil || !reflect.DeepEqual(empty(strictly), empty(leniently)) {
			t.Fatalf("%q is %+v, and to others %+v, %v", body, strictly, leniently, err)
		}
	})
}

// empty makes an empty list and none the same.
func empty(r wire.BeginRequest) wire.BeginRequest {
	if len(r.Audiences) == 0 {
		r.Audiences = nil
	}
	if len(r.Scopes) == 0 {
		r.Scopes = nil
	}
	if len(r.Tokens) == 0 {
		r.Tokens = nil
	}
	for i := range r.Tokens {
		if len(r.Tokens[i].Scopes) == 0 {
			r.Tokens[i].Scopes = nil
		}
	}
	return r
}

// TestEveryProblemIsWhole: each row of the table has what its page and its answer need.
func TestEveryProblemIsWhole(t *testing.T) {
	seen := map[string]bool{}
	for i, row := range problemTypes {
		if row.name == "" || row.title == "" || row.mend == "" || row.status < 400 || row.is == nil || seen[row.name] {
			t.Errorf("row %d is not whole, or there twice: %+v", i, row)
		}
		if (row.retry != "") != (row.status == http.StatusTooManyRequests || row.status == http.StatusServiceUnavailable) {
			t.Errorf("%s: status %d with Retry-After %q", row.name, row.status, row.retry)
		}
		seen[row.name] = true
	}
	if last := problemTypes[len(problemTypes)-1]; last.name != wire.ProblemInternal {
		t.Errorf("the last row is %s; it must answer everything", last.name)
	}
}
