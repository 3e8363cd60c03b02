package httpapi

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// TestListQueries: what a list's query may not say is refused with its name, and with the name that was perhaps meant.
func TestListQueries(t *testing.T) {
	for query, want := range map[string]string{
		"workloads=spiffe://a/b":         "did you mean workload?",
		"page-size=3":                    "did you mean page_size?",
		"Audience=a":                     "did you mean audience?",
		"issued=2026-03-01T12:00:00Z":    "did you mean issued_before?",
		"x=y":                            `"x" in the query is not known; there are workload, owner`,
		"all=true":                       `"all" in the query is not known`,
		"workload=a;b":                   "the query cannot be read",
		"workload=%zz":                   "the query cannot be read",
		"workload=":                      "workload is empty",
		"state=":                         "state is empty",
		"page_size=0":                    "page_size must be a number from 1 to 500",
		"page_size=-1":                   "page_size must be a number from 1 to 500",
		"page_size=1000000000":           "page_size must be a number from 1 to 500",
		"page_size=99999999999999999999": "page_size must be a number from 1 to 500",
		"page_size=5&page_size=6":        "page_size is there more than once",
		"ref=job":                        "ref must be a kind and an ID",
		"ref=:":                          "ref must be a kind and an ID",
		"label=env":                      "label must be a name and its value",
		"label=env=a&label=env=b":        "label must be a name and its value",
		"issued_before=yesterday":        "issued_before is not a moment",
		"root=tsk_1&root=tsk_2":          "root is there more than once",
	} {
		_, err := listRequest(query)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", query, err, want)
		}
	}
	if _, err := grantListRequest("state=active"); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("the state of a task, of grants: %v", err)
	}
	for _, query := range []string{"page_size=1", "cursor=x"} {
		if _, err := watchRequest(query, listRequest); !errors.Is(err, broker.ErrInvalid) {
			t.Errorf("%s of a list that is watched: %v", query, err)
		}
	}
	if req, err := grantListRequest("page_size=500&state=live&state=dead"); err != nil || req.Size != 500 || !req.Live || !req.Dead {
		t.Errorf("%+v, %v", req, err)
	}
}

// FuzzSelector: whatever a query or a body says, a filter is refused or is one that says the same when it is written
// as a query, or as a selector, and read again.
func FuzzSelector(f *testing.F) {
	for _, seed := range []struct{ query, body string }{
		{"", "{}"},
		{"workload=spiffe://prod/fin/*&audience=orders&scope=orders:write", `{"workload":["spiffe://prod/fin/*"],"audience":["orders"],"scope":["orders:write"]}`},
		{"label=env=prod&label=team=a%26b&ref=k8s/job:8e:1f&name=a+b&owner=%C3%A9", `{"label":{"env":"prod","team":"a&b"},"ref":"k8s/job:8e:1f","name":["a b"]}`},
		{"issued_before=2026-03-01T12:00:00.5%2B01:00", `{"issued_before":"2026-03-01T12:00:00.5+01:00"}`},
		{"task=" + string(broker.NewTaskID(1)) + "&grant=" + string(broker.NewGrantID(2)), `{"all":true}`},
		{"workload=*&risk=high;", `{"workload":"*"}`},
		{"name=%00&name=%F0%9F%92%A9", `{"name":["\u202e"],"name":[]}`},
		{"workloads=x", `{"Workload":["x"],"everything":true}`},
	} {
		f.Add(seed.query, seed.body)
	}
	f.Fuzz(func(t *testing.T, query, body string) {
		if req, err := listRequest(query); err == nil {
			sameAgain(t, req.Filter)
		} else if !expected(err) {
			t.Fatalf("%q: %v", query, err)
		}
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", wire.TypeJSON)
		var s wire.Selector
		if err := decode(httptest.NewRecorder(), r, MaxBody, &s); err != nil {
			return
		}
		filter, err := filterOf("selector.", s)
		if err == nil {
			sameAgain(t, filter)
		} else if !expected(err) {
			t.Fatalf("%q: %v", body, err)
		}
	})
}

func expected(err error) bool {
	var bad *malformed
	return errors.Is(err, broker.ErrInvalid) || errors.As(err, &bad)
}

func sameAgain(t *testing.T, f broker.Filter) {
	t.Helper()
	f, err := f.Check()
	if err != nil {
		if !errors.Is(err, broker.ErrInvalid) {
			t.Fatal(err)
		}
		return
	}
	if f.All {
		return // which no query says
	}
	req, err := listRequest(f.String())
	if err != nil {
		t.Fatalf("%s: %v", f, err)
	}
	if again, err := req.Filter.Check(); err != nil || !reflect.DeepEqual(again, f) {
		t.Fatalf("%s is read as %s, %v\n%#v\n%#v", f, again, err, f, again)
	}
}

func TestWantsEvents(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "application/json": false, "text/event-stream": true, "application/json;q=0.5, text/event-stream;q=0.9": true, "text/event-streams": false,
	} {
		if got := wantsEvents(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}
