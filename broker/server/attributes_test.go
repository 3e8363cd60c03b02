package server_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// saying is a begin with members beside name and purpose.
func saying(members string) string { return `{"name":"n","purpose":"p",` + members + `}` }

func repeat(s string, n int) string { return strings.Repeat(s, n) }

// object is a JSON object of so many bytes, with other members before the one that fills it.
func object(members string, size int) string {
	head := `{` + members + `"x":"`
	return head + repeat("x", size-len(head)-2) + `"}`
}

// deep is an object nested so deep, and wide one with so many values.
func deep(n int) string { return repeat(`{"a":`, n-1) + "{}" + repeat("}", n-1) }

func wide(n int) string { return `{"a":[` + repeat("0,", n-2) + `0]}` }

// list is a JSON list of what f makes, n times.
func list(n int, f func(i int) string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = f(i)
	}
	return "[" + strings.Join(items, ",") + "]"
}

func labels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"l%d":"v"`, i)
	}
	return `"labels":{` + b.String()[1:] + `}`
}

// TestAttributeLimits has what a task may say about itself at each limit, and one past it.
func TestAttributeLimits(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	payment := func(i int) string { return fmt.Sprintf(`{"type":"payment","n":%d}`, i) }
	typed := `"type":"payment",`
	for name, c2 := range map[string]struct{ good, bad, field string }{
		"ticket":           {`"ticket":"` + repeat("t", 128) + `"`, `"ticket":"` + repeat("t", 129) + `"`, "ticket"},
		"ticket's text":    {`"ticket":"Ünïcode 1"`, `"ticket":"a\nb"`, "ticket"},
		"ref.kind":         {`"ref":{"kind":"` + repeat("k", 64) + `","id":"1"}`, `"ref":{"kind":"` + repeat("k", 65) + `","id":"1"}`, "ref.kind"},
		"ref.kind's text":  {`"ref":{"kind":"k8s/job_a.b-c","id":"1"}`, `"ref":{"kind":"K8s","id":"1"}`, "ref.kind"},
		"ref.kind missing": {`"ref":{"kind":"k","id":"1"}`, `"ref":{"id":"1"}`, "ref.kind"},
		"ref.id":           {`"ref":{"kind":"k","id":"` + repeat("i", 256) + `"}`, `"ref":{"kind":"k","id":"` + repeat("i", 257) + `"}`, "ref.id"},
		"ref.id's text":    {`"ref":{"kind":"k","id":"8812/1:a"}`, `"ref":{"kind":"k","id":"a b"}`, "ref.id"},
		"ref.id missing":   {`"ref":{"kind":"k","id":"1"}`, `"ref":{"kind":"k"}`, "ref.id"},
		"ref empty":        {`"ref":null`, `"ref":{}`, "ref"},
		"ref.url": {`"ref":{"kind":"k","id":"1","url":"https://a/` + repeat("u", 1024-10) + `"}`,
			`"ref":{"kind":"k","id":"1","url":"https://a/` + repeat("u", 1025-10) + `"}`, "ref.url"},
		"ref.url's scheme":    {`"ref":{"kind":"k","id":"1","url":"http://a:80/b?c=d#e"}`, `"ref":{"kind":"k","id":"1","url":"javascript:alert(1)"}`, "ref.url"},
		"ref.url's host":      {`"ref":{"kind":"k","id":"1","url":"HTTPS://[::1]/"}`, `"ref":{"kind":"k","id":"1","url":"https:///path"}`, "ref.url"},
		"ref.url's user":      {`"ref":{"kind":"k","id":"1","url":"https://a/u:p@b"}`, `"ref":{"kind":"k","id":"1","url":"https://u:p@a/"}`, "ref.url"},
		"ref.url's text":      {`"ref":{"kind":"k","id":"1","url":"https://xn--bcher-kva.example/"}`, `"ref":{"kind":"k","id":"1","url":"https://a/\u202e"}`, "ref.url"},
		"labels":              {labels(16), labels(17), "labels"},
		"a label's name":      {`"labels":{"` + repeat("k", 64) + `":"v"}`, `"labels":{"` + repeat("k", 65) + `":"v"}`, "labels"},
		"a label's name text": {`"labels":{"example.org/a_b-c":"v"}`, `"labels":{"Env":"v"}`, "labels"},
		"a label without one": {`"labels":{"a":""}`, `"labels":{"":"a"}`, "labels"},
		"a label's value":     {`"labels":{"env":"` + repeat("v", 128) + `"}`, `"labels":{"env":"` + repeat("v", 129) + `"}`, "labels.env"},
		"a label's text":      {`"labels":{"env":"prod, \"é\" \\"}`, `"labels":{"env":"\u001b[31m"}`, "labels.env"},
		"context":             {`"context":` + object("", 4096), `"context":` + object("", 4097), "context"},
		"context's depth":     {`"context":` + deep(8), `"context":` + deep(9), "context"},
		"context's values":    {`"context":` + wide(64), `"context":` + wide(65), "context"},
		"context's numbers":   {`"context":{"a":9007199254740991,"b":-9007199254740991,"c":0.1,"d":-0}`, `"context":{"a":[9007199254740992]}`, "context"},
		"context's infinity":  {`"context":{"a":1e15}`, `"context":{"a":1e400}`, "context"},
		"context's form":      {`"context":{}`, `"context":[]`, "context"},
		"context null":        {`"context":{"a":null}`, `"context":null`, "context"},
		"details":             {`"authorization_details":` + list(16, payment), `"authorization_details":` + list(17, payment), "authorization_details"},
		"a detail": {`"authorization_details":[` + object(typed, 1024) + `]`,
			`"authorization_details":[{"type":"customer"},` + object(typed, 1025) + `]`, "authorization_details[1]"},
		"a detail's depth": {`"authorization_details":[{"type":"payment","a":` + deep(7) + `}]`,
			`"authorization_details":[{"type":"payment","a":` + deep(8) + `}]`, "authorization_details[0]"},
		"a detail's values": {`"authorization_details":[{"type":"payment","a":` + wide(62) + `}]`,
			`"authorization_details":[{"type":"payment","a":` + wide(63) + `}]`, "authorization_details[0]"},
		"a detail's form":           {`"authorization_details":[]`, `"authorization_details":["payment"]`, "authorization_details[0]"},
		"a detail's type missing":   {`"authorization_details":[{"type":"payment"}]`, `"authorization_details":[{"Type":"payment"}]`, "authorization_details[0].type"},
		"a detail's type no string": {`"authorization_details":[{"type":"payment"}]`, `"authorization_details":[{"type":["payment"]}]`, "authorization_details[0].type"},
		"a detail twice": {`"authorization_details":[{"type":"payment","a":1},{"type":"payment","a":2}]`,
			`"authorization_details":[{"type":"payment","a":1},{"a":1.0,"type":"payment"}]`, "authorization_details[1]"},
		"a token's details": {
			`"authorization_details":` + list(3, func(i int) string { return object(typed+fmt.Sprintf(`"n":%d,`, i), 1024) }) +
				`,"tokens":[{"audience":"orders","authorization_details":` + list(3, func(i int) string { return object(typed+fmt.Sprintf(`"n":%d,`, i), 1024) }) + `}]`,
			`"authorization_details":` + list(4, func(i int) string { return object(typed+fmt.Sprintf(`"n":%d,`, i), 769) }) +
				`,"tokens":[{"audience":"orders","authorization_details":` + list(4, func(i int) string { return object(typed+fmt.Sprintf(`"n":%d,`, i), 769) }) + `}]`,
			"tokens[0].authorization_details"},
		"a token's detail": {`"tokens":[{"audience":"orders","authorization_details":[]}]`,
			`"tokens":[{"audience":"orders"},{"audience":"orders","authorization_details":[1]}]`, "tokens[1].authorization_details[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := c.post(wire.PathTasks, saying(c2.good)); a.status != http.StatusCreated {
				t.Errorf("at the limit: %d %s", a.status, a.body)
			}
			a := c.post(wire.PathTasks, saying(c2.bad))
			c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
			if a.problem.Field != c2.field || !strings.HasPrefix(a.problem.Detail, c2.field+" ") {
				t.Errorf("past the limit: field %q, %s; want %s", a.problem.Field, a.body, c2.field)
			}
		})
	}
	for name, body := range map[string]string{
		"a member twice in a context": saying(`"context":{"a":1,"\u0061":2}`),
		"a lone surrogate":            saying(`"context":{"a":"\ud800"}`),
		"an unknown member of a ref":  saying(`"ref":{"kind":"k","id":"1","uid":"2"}`),
		"a label that is no string":   saying(`"labels":{"a":1}`),
		"a label twice":               saying(`"labels":{"a":"1","a":"2"}`),
		"details that are no list":    saying(`"authorization_details":{"type":"payment"}`),
	} {
		t.Run(name, func(t *testing.T) {
			c.refused(c.post(wire.PathTasks, body), http.StatusBadRequest, wire.ProblemMalformed)
		})
	}
}

const allAttributes = `"ticket":"CHG-2117","ref":{"kind":"k8s/job","id":"6f1c","url":"https://k8s.example.org/6f1c"},
 "labels":{"team":"fin","env":"prod"},"context":{"n": 1.50, "intent":"export", "a":[ ]},
 "authorization_details":[{"type":"payment","max":5},{"type":"customer","actions":["read"],"id":"<7>"}]`

// TestAttributes follows what a task says about itself through the API, a token and the audit log.
func TestAttributes(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	keyed := func(body string) answer {
		return c.send("POST", wire.PathTasks, body, func(req *http.Request) { req.Header.Set(wire.HeaderIdempotencyKey, "k1") })
	}
	tokens := `,"tokens":[{"audience":"orders","authorization_details":[{"id":"<7>","actions":["read"],"type":"customer"}]}]`
	a := keyed(saying(allAttributes + tokens))
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var begun wire.BeginResponse
	a.into(t, &begun)
	details := `[{"actions":["read"],"id":"<7>","type":"customer"},{"max":5,"type":"payment"}]`
	check := func(where string, task wire.Task) {
		t.Helper()
		if task.Ticket != "CHG-2117" || task.Ref == nil || *task.Ref != (wire.Ref{Kind: "k8s/job", ID: "6f1c", URL: "https://k8s.example.org/6f1c"}) ||
			!maps.Equal(task.Labels, map[string]string{"team": "fin", "env": "prod"}) || !sameJSON(task.Context, `{"a":[],"intent":"export","n":1.5}`) ||
			!sameJSON(task.AuthorizationDetails, details) {
			t.Errorf("%s: %+v", where, task)
		}
	}
	check("begin", begun.Task)
	var task wire.Task
	c.get(taskPath(begun.Task.ID, "")).into(t, &task)
	check("get", task)

	mine := `[{"actions":["read"],"id":"<7>","type":"customer"}]`
	token := begun.Tokens[0]
	if !sameJSON(token.AuthorizationDetails, mine) || !sameJSON(claim(t, token.AccessToken, "authorization_details"), mine) {
		t.Errorf("the token has %s, and its answer %s", claim(t, token.AccessToken, "authorization_details"), token.AuthorizationDetails)
	}
	for _, other := range []string{"labels", "ticket", "ref", "context"} {
		if claim(t, token.AccessToken, other) != nil {
			t.Errorf("the token has the claim %s", other)
		}
	}
	var grant wire.Grant
	c.get("/v1/grants/"+token.GrantID).into(t, &grant)
	if !sameJSON(grant.AuthorizationDetails, mine) {
		t.Errorf("the grant has %s", grant.AuthorizationDetails)
	}
	plain := c.post(taskPath(task.ID, "/tokens"), `{"audience":"orders"}`)
	if plain.status != http.StatusOK || strings.Contains(string(plain.body), "authorization_details") {
		t.Errorf("a token that asks for no details: %d %s", plain.status, plain.body)
	}

	t.Run("replay", func(t *testing.T) {
		var again wire.BeginResponse
		keyed(saying(strings.NewReplacer(" 1.50", "15e-1", `"env":"prod"`, `"env":"pr\u006fd"`).Replace(allAttributes)+tokens)).into(t, &again)
		if again.Task.ID != task.ID || len(again.Tokens) != 1 || !sameJSON(claim(t, again.Tokens[0].AccessToken, "authorization_details"), mine) {
			t.Errorf("got %+v", again)
		}
		check("replay", again.Task)
		for _, change := range [][2]string{
			{"CHG-2117", "CHG-2118"}, {"k8s/job", "k8s/pod"}, {`"6f1c"`, `"6f1d"`}, {"org/6f1c", "org/6f1d"}, {`"fin"`, `"ops"`},
			{`"team"`, `"owner"`}, {"1.50", "1.51"}, {`"export"`, `"import"`}, {`"max":5`, `"max":6`}, {`,"id":"<7>"`, ""},
		} {
			changed := strings.Replace(allAttributes, change[0], change[1], 1)
			if a := keyed(saying(changed + tokens)); a.status != http.StatusConflict && a.status != http.StatusForbidden {
				t.Errorf("%v: %d %s", change, a.status, a.body)
			}
			if a := keyed(saying(changed)); a.status != http.StatusConflict || a.name() != wire.ProblemIdempotencyMismatch {
				t.Errorf("%v without tokens: %d %s", change, a.status, a.body)
			}
		}
	})

	denied := c.post(taskPath(task.ID, "/tokens"), `{"audience":"orders","scopes":["orders:admin"]}`)
	c.refused(denied, http.StatusForbidden, wire.ProblemScopeExceeded)
	c.end(task.ID, "completed")
	lines := r.linesAbout(map[string]int{"task.begun": 2, "grant.issued": 3, "request.denied": 1, "task.ended": 1}, task.ID)
	for i, line := range lines {
		wants := details
		if line.Kind == "grant.issued" {
			wants = mine
		}
		switch {
		case line.Kind == "task.ended":
			if line.Ticket != "" || line.Details != nil {
				t.Errorf("an end says it all again: %+v", line)
			}
		case line.Ticket != "CHG-2117" || line.Ref == nil || line.Ref.ID != "6f1c" || line.Labels["env"] != "prod" ||
			string(line.Context) != `{"a":[],"intent":"export","n":1.5}` || line.Decision == "" || line.Purpose != "p":
			t.Errorf("%d, %s: %+v", i, line.Kind, line)
		case line.Rule == "" && i != 4: // the grants of a replay are not decided on again
			t.Errorf("%d, %s has no rule: %+v", i, line.Kind, line)
		case line.Kind == "grant.issued" && line.Details == nil && line.Grant != token.GrantID: // the plain one
		case !sameJSON(line.Details, wants):
			t.Errorf("%d, %s: details %s; want %s", i, line.Kind, line.Details, wants)
		}
	}
}

// linesAbout waits for so many lines of each kind about a task in the audit log.
func (r *replica) linesAbout(want map[string]int, task string) []audit.Line {
	r.t.Helper()
	var lines []audit.Line
	r.eventually("the audit log has it all", func() bool {
		lines = nil
		have := map[string]int{}
		text, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
		if err != nil {
			r.t.Fatal(err)
		}
		for text := range strings.Lines(string(text)) {
			var line audit.Line
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				r.t.Fatalf("%q: %v", text, err)
			}
			if line.Task == task && want[line.Kind] > 0 {
				have[line.Kind]++
				lines = append(lines, line)
			}
		}
		return maps.Equal(have, want)
	})
	return lines
}

// claim is one member of a token's payload, and nil when it has none.
func claim(t *testing.T, token, name string) json.RawMessage {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims[name]
}

// sameJSON compares what two JSON texts say.
func sameJSON(got any, want string) bool {
	text, err := json.Marshal(got)
	if err != nil {
		return false
	}
	var x, y any
	return json.Unmarshal(text, &x) == nil && json.Unmarshal([]byte(want), &y) == nil && reflect.DeepEqual(x, y)
}

// TestDetailsAreASubset: a token has details that are the task's, as they are, and that its audience
// knows.
func TestDetailsAreASubset(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	task := c.beginAs(saying(`"authorization_details":[{"type":"payment","max":5,"to":["a","b"]},{"type":"customer"}]`)).Task.ID
	ask := func(audience, details string) answer {
		return c.post(taskPath(task, "/tokens"), fmt.Sprintf(`{"audience":%q,"authorization_details":%s}`, audience, details))
	}
	for name, details := range map[string]string{
		"one":                        `[{"type":"customer"}]`,
		"in another order":           `[{"type":"customer"},{"to":["a","b"],"max":5,"type":"payment"}]`,
		"written in another way":     `[{"type":"p\u0061yment","max":5.0,"to":[ "a", "b" ]}]`,
		"none of those that are had": `[]`,
	} {
		if a := ask("orders", details); a.status != http.StatusOK {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	for name, details := range map[string]string{
		"a larger value":          `[{"type":"payment","max":6,"to":["a","b"]}]`,
		"a smaller value":         `[{"type":"payment","max":4,"to":["a","b"]}]`,
		"a member less":           `[{"type":"payment","max":5}]`,
		"a member more":           `[{"type":"customer","id":1}]`,
		"an element less":         `[{"type":"payment","max":5,"to":["a"]}]`,
		"elements in other order": `[{"type":"payment","max":5,"to":["b","a"]}]`,
		"a string for a number":   `[{"type":"payment","max":"5","to":["a","b"]}]`,
		"one that is and one not": `[{"type":"customer"},{"type":"payment"}]`,
		"other letter case":       `[{"type":"Customer"}]`,
	} {
		a := ask("orders", details)
		c.refused(a, http.StatusForbidden, wire.ProblemScopeExceeded)
		if a.problem.Rule != "task/ceiling" || a.problem.Missing["authorization_details"] == "" || a.problem.DecisionID == "" {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	a := ask("files", `[{"type":"customer"}]`) // which knows no details
	c.refused(a, http.StatusForbidden, wire.ProblemDenied)
	unknown := c.post(wire.PathTasks, saying(`"authorization_details":[{"type":"customer"},{"type":"refund"}]`))
	c.refused(unknown, http.StatusForbidden, wire.ProblemDenied)
	foreign := c.post(wire.PathTasks, saying(`"audiences":["files"],"authorization_details":[{"type":"customer"}]`))
	c.refused(foreign, http.StatusForbidden, wire.ProblemDenied)
	for _, a := range []answer{a, unknown, foreign} {
		if a.problem.Rule != "ceiling/detail-unknown-to-audience" || a.problem.Missing["authorization_details"] == "" {
			t.Errorf("the rule is not named: %s", a.body)
		}
	}
	if a := c.post(wire.PathTasks, saying(`"tokens":[{"audience":"orders","authorization_details":[{"type":"customer"}]}]`)); a.problem.Rule != "task/ceiling" {
		t.Errorf("a token with details that its task has not: %s", a.body)
	}
}

// TestTokenSize: what does not fit into a token is named, and nothing of it stays.
func TestTokenSize(t *testing.T) {
	scopes := list(12, func(i int) string { return fmt.Sprintf("%c", 'a'+i) + repeat("s", broker.MaxScopeBytes-1) })
	large, err := registry.Parse([]byte(`
audiences: [{name: orders, owner: o, scopes: ` + scopes + `, details: [payment]}]
workloads: [{id: "` + reportID + `", owner: o, purpose: p, ceiling: {orders: ` + scopes + `}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	r := startFederated(t, nil, func(config *server.Config) { config.Registry = large })
	c := r.client(reportID)
	filler := func(i int) string { return object(fmt.Sprintf(`"type":"payment","n":%d,`, i), broker.MaxDetail) }
	details := `"authorization_details":` + list(3, filler)
	a := c.post(wire.PathTasks, saying(details+`,"tokens":[{"audience":"orders"},{"audience":"orders",`+details+`}]`))
	c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
	if a.problem.Field != "tokens[1].authorization_details" && a.problem.Field != "tokens[1].scopes" || !strings.Contains(a.problem.Detail, fmt.Sprint(wire.MaxTokenBytes)) {
		t.Errorf("begin: %s", a.body)
	}
	task := c.beginAs(saying(details)).Task.ID
	few := `,"scopes":["a` + repeat("s", broker.MaxScopeBytes-1) + `"]`
	for body, field := range map[string]string{"": "scopes", few: ""} {
		a := c.post(taskPath(task, "/tokens"), `{"audience":"orders",`+details+body+`}`)
		if field != "" {
			c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
		} else if a.status != http.StatusOK {
			t.Errorf("all details with one scope: %d %s", a.status, a.body)
		}
		if a.problem.Field != field {
			t.Errorf("field %q; want %q", a.problem.Field, field)
		}
	}
}

// TestNotes: the last note of a task's heartbeats is kept and shown.
func TestNotes(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	one, two := c.begin().Task, c.begin().Task
	if one.Note != "" || one.NotedAt != nil {
		t.Errorf("a new task: %+v", one)
	}
	beat := func(notes ...string) answer {
		t.Helper()
		return c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q,"note":%q},{"id":%q%s}]}`, one.ID, notes[0], two.ID, strings.Join(notes[1:], "")))
	}
	note := func(id string) (string, *time.Time) {
		t.Helper()
		var task wire.Task
		c.get(taskPath(id, "")).into(t, &task)
		return task.Note, task.NotedAt
	}
	long := repeat("é", wire.MaxNote/2)
	for _, text := range []string{"1 of 3", "2 of 3: “odd” \\ <b>", long} {
		if a := beat(text); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if got, at := note(one.ID); got != text || at == nil || at.Before(one.BegunAt) {
			t.Errorf("got %q at %v; want %q", got, at, text)
		}
	}
	_, before := note(one.ID)
	beat("", `,"note":"mine"`)
	if got, at := note(one.ID); got != long || !at.Equal(*before) {
		t.Errorf("a beat without a note left %q of %v", got, at)
	}
	if got, _ := note(two.ID); got != "mine" {
		t.Errorf("got %q", got)
	}
	for _, text := range []string{long + "x", "a\nb", "\x1b[31m", "\u202e", "\u200b", "\x00"} {
		body, _ := json.Marshal(wire.HeartbeatRequest{Tasks: []wire.HeartbeatTask{{ID: two.ID}, {ID: one.ID, Note: text}}})
		a := c.post(wire.PathHeartbeats, string(body))
		c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
		if a.problem.Field != "tasks[1].note" {
			t.Errorf("%q: %s", text, a.body)
		}
	}
	if broker.MaxNote != wire.MaxNote {
		t.Errorf("the broker takes notes of %d bytes, and says %d", broker.MaxNote, wire.MaxNote)
	}
}

// TestNothingBreaksALine: what people write is one line of the audit log and of the broker's, and
// shows itself there for what it is.
func TestNothingBreaksALine(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	evil := "a\nb\r\u001b[31m\u202eevil\u2066\u200b\u0085\u2028\U000e0041\x7f"
	text, _ := json.Marshal(evil)
	context := fmt.Sprintf(`"context":{"x":%s}`, text)
	begun := c.beginAs(fmt.Sprintf(`{"name":%s,"purpose":%s,%s,"authorization_details":[{"type":"customer","x":%s}]}`, text, text, context, text)).Task
	c.post(wire.PathTasks, fmt.Sprintf(`{"name":%s,"purpose":%s,"scopes":["orders:admin"],%s}`, text, text, context))
	c.post(wire.PathTasks, saying(fmt.Sprintf(`"ticket":%s`, text)))
	c.post(wire.PathTasks, saying(fmt.Sprintf(`"labels":{"a":%s}`, text)))
	c.post(wire.PathTasks, saying(fmt.Sprintf(`"labels":{%s:"a"}`, text)))
	c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q,"note":%s}]}`, begun.ID, text))
	c.post(taskPath(begun.ID, "/end"), fmt.Sprintf(`{"outcome":"failed","reason":%s}`, text))
	if begun.Purpose != evil || begun.Name != evil {
		t.Errorf("the task says %q", begun.Purpose)
	}
	for i, line := range r.linesAbout(map[string]int{"task.begun": 1, "task.ended": 1}, begun.ID) {
		if line.Purpose != evil || line.TaskName != evil || i == 1 && line.Reason != evil {
			t.Errorf("the log has %+v", line)
		}
	}
	audited, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for name, log := range map[string]string{"audit": string(audited), "broker's": r.logs.String()} {
		for _, hidden := range evil {
			if hidden > '~' && name == "broker's" || hidden == '\n' || hidden >= ' ' && hidden < 0x7f {
				continue // slog leaves to its reader what is no control character
			}
			if strings.ContainsRune(log, hidden) {
				t.Errorf("%U stands in the %s log as it is", hidden, name)
			}
		}
		for line := range strings.Lines(log) {
			if !json.Valid([]byte(line)) {
				t.Errorf("a line of the %s log is none: %q", name, line)
			}
		}
	}
}
