package server_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/sdk/wire"
)

func nested(depth int) string {
	return `{"name":"n","purpose":"p","x":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + `}`
}

func members(n int) string {
	var b strings.Builder
	b.WriteString(`{"name":"n"`)
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, `,"m%d":1`, i)
	}
	return b.String() + "}"
}

// TestBadJSON is what must not be taken for a request, whoever sends it.
func TestBadJSON(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	good := `{"name":"n","purpose":"p"}`
	for name, body := range map[string]string{
		"empty":                     " ",
		"null":                      `null`,
		"array":                     `[` + good + `]`,
		"string":                    `"task"`,
		"number":                    `1`,
		"truncated":                 good[:len(good)-1],
		"truncated in a string":     `{"name":"n`,
		"two documents":             good + good,
		"trailing garbage":          good + "x",
		"trailing comma":            `{"name":"n","purpose":"p",}`,
		"byte order mark":           "\xef\xbb\xbf" + good,
		"invalid UTF-8":             "{\"name\":\"\xff\",\"purpose\":\"p\"}",
		"overlong UTF-8":            "{\"name\":\"\xc0\xaf\",\"purpose\":\"p\"}",
		"lone surrogate":            `{"name":"\ud800","purpose":"p"}`,
		"UTF-16":                    "\xff\xfe{\x00}\x00",
		"duplicate member":          `{"name":"n","name":"m","purpose":"p"}`,
		"duplicate through escape":  `{"name":"n","\u006eame":"m","purpose":"p"}`,
		"other letter case":         `{"Name":"n","purpose":"p"}`,
		"long s for s":              `{"name":"n","purpo\u017fe":"p"}`,
		"unknown member":            `{"name":"n","purpose":"p","admin":true}`,
		"unknown nested member":     `{"name":"n","purpose":"p","tokens":[{"audience":"orders","sub":"x"}]}`,
		"__proto__":                 `{"name":"n","purpose":"p","__proto__":{}}`,
		"member with NUL":           `{"name":"n","purpose":"p","name\u0000":"x"}`,
		"nested too deep":           nested(httpapi.MaxNesting + 1),
		"nested 10 001 deep":        nested(10_001),
		"too many members":          members(httpapi.MaxMembers + 1),
		"number too large":          `{"name":"n","purpose":"p","lease_seconds":1e400}`,
		"fraction":                  `{"name":"n","purpose":"p","lease_seconds":30.5}`,
		"exponent":                  `{"name":"n","purpose":"p","lease_seconds":3e1}`,
		"string for a number":       `{"name":"n","purpose":"p","lease_seconds":"30"}`,
		"duration for a number":     `{"name":"n","purpose":"p","lease_seconds":"30s"}`,
		"ISO duration":              `{"name":"n","purpose":"p","lease_seconds":"PT30S"}`,
		"beyond 64 bits":            `{"name":"n","purpose":"p","lease_seconds":9223372036854775808}`,
		"NaN":                       `{"name":"n","purpose":"p","lease_seconds":NaN}`,
		"hexadecimal":               `{"name":"n","purpose":"p","lease_seconds":0x1e}`,
		"leading zero":              `{"name":"n","purpose":"p","lease_seconds":030}`,
		"comment":                   `{"name":"n","purpose":"p"/* why */}`,
		"single quotes":             `{'name':'n','purpose':'p'}`,
		"unquoted member":           `{name:"n",purpose:"p"}`,
		"number for a string":       `{"name":1,"purpose":"p"}`,
		"object for a string":       `{"name":{},"purpose":"p"}`,
		"string for a list":         `{"name":"n","purpose":"p","audiences":"orders"}`,
		"list for an object":        `{"name":"n","purpose":"p","tokens":[["orders"]]}`,
		"list of audiences for one": `{"name":"n","purpose":"p","tokens":[{"audience":["orders","files"]}]}`,
		"raw newline in a string":   "{\"name\":\"n\n\",\"purpose\":\"p\"}",
	} {
		t.Run(name, func(t *testing.T) {
			c.refused(c.post(wire.PathTasks, body), http.StatusBadRequest, wire.ProblemMalformed)
		})
	}
	t.Run("what is wrong is named", func(t *testing.T) {
		for body, say := range map[string]string{
			`{"name":"n","porpose":"p"}`:                            "porpose is not known",
			`{"name":"n","name":"m"}`:                               "name is there twice",
			`{"name":"n","tokens":[{"audience":"a"},"b"]}`:          "tokens[1] must be an object, and is a JSON string",
			`{"name":"n","tokens":[{"audience":"a","scopes":"b"}]}`: "tokens[0].scopes must be a list, and is a JSON string",
			`{"name":"n","lease_seconds":"30s"}`:                    "lease_seconds must be a whole number, and is a JSON string",
			`{"name":true}`:                                         "name must be a string, and is a JSON boolean",
			`{"a\nb<script>":1}`:                                    `"a\nb<script>" is not known`,
			`{"` + strings.Repeat("x", 1000) + `":1}`:               strings.Repeat("x", 64) + `"… is not known`,
		} {
			if a := c.post(wire.PathTasks, body); !strings.Contains(a.problem.Detail, say) || len(a.problem.Detail) > 300 {
				t.Errorf("%.60s: %s", body, a.problem.Detail)
			}
		}
	})
	t.Run("at the limits", func(t *testing.T) {
		// Unknown members are what is wrong with these, not their number or depth.
		for _, body := range []string{nested(httpapi.MaxNesting), members(httpapi.MaxMembers)} {
			a := c.post(wire.PathTasks, body)
			if a.status != http.StatusBadRequest || !strings.Contains(a.problem.Detail, "not known") {
				t.Errorf("%d %s", a.status, a.body)
			}
		}
		space := strings.Repeat(" ", httpapi.MaxBody-len(good))
		if a := c.post(wire.PathTasks, good+space); a.status != http.StatusCreated {
			t.Errorf("64 KiB: %d %s", a.status, a.body)
		}
		c.refused(c.post(wire.PathTasks, good+space+" "), http.StatusRequestEntityTooLarge, wire.ProblemTooLarge)
		c.refused(c.post(wire.PathTasks, `{"name":"`+strings.Repeat("n", 1<<20)+`"}`), http.StatusRequestEntityTooLarge, wire.ProblemTooLarge)
	})
	t.Run("odd, but meant", func(t *testing.T) {
		for _, body := range []string{
			`{"\u006eame":"n","purpose":"p"}`,                                 // an escaped member
			"{\"name\":\"n\",\"purpose\":\"a\\nb \\u001b[31m \u202e\u200b\"}", // escaped in the audit log
			`{"name":"n","purpose":"p","scopes":null}`,
		} {
			if a := c.post(wire.PathTasks, body); a.status != http.StatusCreated {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}
	})
}

func TestBadHeaders(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	good := `{"name":"n","purpose":"p"}`
	send := func(name, value string) answer {
		return c.send("POST", wire.PathTasks, good, func(req *http.Request) { req.Header.Set(name, value) })
	}
	for _, media := range []string{"", "text/plain", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "application/json,text/plain", ";"} {
		c.refused(send("Content-Type", media), http.StatusUnsupportedMediaType, wire.ProblemMediaType)
	}
	c.refused(send("Content-Encoding", "gzip"), http.StatusUnsupportedMediaType, wire.ProblemMediaType)
	c.refused(c.send("POST", wire.PathTasks, good, func(req *http.Request) {
		req.Header["Content-Encoding"] = []string{"identity", "gzip"}
	}), http.StatusUnsupportedMediaType, wire.ProblemMediaType)
	if a := send("Content-Type", "application/json; charset=UTF-8"); a.status != http.StatusCreated {
		t.Errorf("UTF-8 by name: %d", a.status)
	}
	for _, key := range []string{`"open`, `""`} {
		c.refused(send(wire.HeaderIdempotencyKey, key), http.StatusBadRequest, wire.ProblemMalformed)
	}
	c.refused(send(wire.HeaderIdempotencyKey, strings.Repeat("k", broker.MaxKey+1)), http.StatusUnprocessableEntity, wire.ProblemInvalid)
	c.refused(c.send("POST", wire.PathTasks, good, func(req *http.Request) {
		req.Header[wire.HeaderIdempotencyKey] = []string{"a", "b"}
	}), http.StatusBadRequest, wire.ProblemMalformed)
	// Headers that a proxy would set change nothing about who is asking.
	a := c.send("GET", wire.PathWhoami, "", func(req *http.Request) {
		req.Header.Set("X-Forwarded-Client-Cert", "URI="+nobodyID)
		req.Header.Set("X-Forwarded-For", "203.0.113.9")
	})
	var who wire.Whoami
	a.into(t, &who)
	if who.Workload != reportID {
		t.Errorf("I am %s", who.Workload)
	}
	for _, method := range []string{"PUT", "PATCH", "DELETE", "BREW"} {
		c.refused(c.send(method, wire.PathTasks, "", nil), http.StatusMethodNotAllowed, wire.ProblemMethodNotAllowed)
	}
	for _, path := range []string{"/", "/v1", "/v1/tasks/", "/v1//tasks", "/v2/tasks", "/v1/grants", "/v1/tasks/../whoami/x", "/.well-known/jwks.json"} {
		c.refused(c.get(path), http.StatusNotFound, wire.ProblemNotFound)
	}
}

// TestBadLives has the lives that must be refused, and those at the bounds that must not.
func TestBadLives(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	body := func(member string, value int64) string {
		return fmt.Sprintf(`{"name":"n","purpose":"p",%q:%d}`, member, value)
	}
	token := func(value int64) string {
		return fmt.Sprintf(`{"name":"n","purpose":"p","tokens":[{"audience":"orders","ttl_seconds":%d}]}`, value)
	}
	for _, bound := range []struct {
		member    string
		low, high int64
		body      func(int64) string
	}{
		{"lease_seconds", 5, 600, func(n int64) string { return body("lease_seconds", n) }},
		{"deadline_seconds", 5, 86400, func(n int64) string { return body("deadline_seconds", n) }},
		{"tokens[0].ttl_seconds", 2, 900, token},
	} {
		for _, n := range []int64{bound.low, bound.high} {
			if a := c.post(wire.PathTasks, bound.body(n)); a.status != http.StatusCreated {
				t.Errorf("%s %d: %d %s", bound.member, n, a.status, a.body)
			}
		}
		for _, n := range []int64{bound.low - 1, bound.high + 1, 0, -1, 1 << 31, 1<<53 + 1, 1<<63 - 1, -1 << 63} {
			a := c.post(wire.PathTasks, bound.body(n))
			c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
			if a.problem.Field != bound.member || !strings.Contains(a.problem.Detail, bound.member) {
				t.Errorf("%s %d does not name its field: %s", bound.member, n, a.body)
			}
		}
	}
	t.Run("minus zero is a zero", func(t *testing.T) {
		a := c.post(wire.PathTasks, `{"name":"n","purpose":"p","lease_seconds":-0}`)
		if a.status != http.StatusUnprocessableEntity && a.status != http.StatusBadRequest {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("a token never outlives its task", func(t *testing.T) {
		a := c.post(wire.PathTasks, `{"name":"n","purpose":"p","deadline_seconds":6,"tokens":[{"audience":"orders","ttl_seconds":900}]}`)
		var begun wire.BeginResponse
		a.into(t, &begun)
		if begun.Tokens[0].ExpiresIn > 6 {
			t.Errorf("%d s", begun.Tokens[0].ExpiresIn)
		}
	})
}

// TestBadRequests has what a policy or the domain refuses.
func TestBadRequests(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	long := make([]string, broker.MaxScopes+1)
	for i := range long {
		long[i] = strconv.Quote("s" + strconv.Itoa(i))
	}
	for _, test := range []struct {
		name, body string
		status     int
		problem    string
	}{
		{"no name", `{"purpose":"p"}`, 422, wire.ProblemInvalid},
		{"no purpose", `{"name":"n"}`, 422, wire.ProblemInvalid},
		{"blank purpose", `{"name":"n","purpose":" \t\n"}`, 422, wire.ProblemInvalid},
		{"purpose too long", `{"name":"n","purpose":"` + strings.Repeat("p", broker.MaxPurpose+1) + `"}`, 422, wire.ProblemInvalid},
		{"scope that is not allowed", `{"name":"n","purpose":"p","scopes":["orders:write"]}`, 403, wire.ProblemDenied},
		{"wildcard", `{"name":"n","purpose":"p","scopes":["*"]}`, 403, wire.ProblemDenied},
		{"other case", `{"name":"n","purpose":"p","scopes":["ORDERS:READ"]}`, 403, wire.ProblemDenied},
		{"glob", `{"name":"n","purpose":"p","scopes":["orders:[a-z]"]}`, 403, wire.ProblemDenied},
		{"path trick", `{"name":"n","purpose":"p","scopes":["orders:../admin"]}`, 403, wire.ProblemDenied},
		{"template", `{"name":"n","purpose":"p","scopes":["{{.}}"]}`, 403, wire.ProblemDenied},
		{"homoglyph", `{"name":"n","purpose":"p","scopes":["orders:reаd"]}`, 422, wire.ProblemInvalid},
		{"scope with a space", `{"name":"n","purpose":"p","scopes":["orders:read orders:write"]}`, 422, wire.ProblemInvalid},
		{"scope with a quote", `{"name":"n","purpose":"p","scopes":["a\"b"]}`, 422, wire.ProblemInvalid},
		{"empty scope", `{"name":"n","purpose":"p","scopes":[""]}`, 422, wire.ProblemInvalid},
		{"scope twice", `{"name":"n","purpose":"p","scopes":["orders:read","orders:read"]}`, 422, wire.ProblemInvalid},
		{"scope too long", `{"name":"n","purpose":"p","scopes":["` + strings.Repeat("s", broker.MaxScopeBytes+1) + `"]}`, 422, wire.ProblemInvalid},
		{"too many scopes", `{"name":"n","purpose":"p","scopes":[` + strings.Join(long, ",") + `]}`, 422, wire.ProblemInvalid},
		{"unknown audience", `{"name":"n","purpose":"p","audiences":["payroll"]}`, 403, wire.ProblemDenied},
		{"audience with a dot behind it", `{"name":"n","purpose":"p","audiences":["orders."]}`, 403, wire.ProblemDenied},
		{"audience in other case", `{"name":"n","purpose":"p","audiences":["Orders"]}`, 403, wire.ProblemDenied},
		{"empty audience", `{"name":"n","purpose":"p","tokens":[{"audience":""}]}`, 422, wire.ProblemInvalid},
		{"token without audience", `{"name":"n","purpose":"p","tokens":[{}]}`, 422, wire.ProblemInvalid},
		{"token outside the ceiling", `{"name":"n","purpose":"p","audiences":["orders"],"tokens":[{"audience":"files"}]}`, 403, wire.ProblemScopeExceeded},
		{"scope of another audience", `{"name":"n","purpose":"p","tokens":[{"audience":"orders","scopes":["files:write"]}]}`, 403, wire.ProblemDenied},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := c.post(wire.PathTasks, test.body)
			c.refused(a, test.status, test.problem)
			if test.problem == wire.ProblemDenied && (a.problem.DecisionID == "" || a.problem.Rule == "") {
				t.Errorf("the denial does not explain itself: %s", a.body)
			}
		})
	}
	t.Run("the wrong field is named", func(t *testing.T) {
		a := c.post(wire.PathTasks, `{"name":"n","purpose":"p","tokens":[{"audience":"orders"},{"audience":"orders","scopes":["a","b "]}]}`)
		if a.problem.Field != "tokens[1].scopes[1]" {
			t.Errorf("%s", a.body)
		}
	})
	t.Run("a refusal does not repeat everything", func(t *testing.T) {
		scopes := make([]string, broker.MaxScopes)
		for i := range scopes {
			scopes[i] = strconv.Quote(strings.Repeat("s", broker.MaxScopeBytes-3) + strconv.Itoa(100+i))
		}
		a := c.post(wire.PathTasks, `{"name":"n","purpose":"p","scopes":[`+strings.Join(scopes, ",")+`]}`)
		if a.status != http.StatusForbidden || len(a.body) > 4096 {
			t.Errorf("%d with %d bytes", a.status, len(a.body))
		}
	})
	t.Run("not registered", func(t *testing.T) {
		a := r.client(nobodyID).post(wire.PathTasks, beginBody)
		if a.status != http.StatusForbidden || a.name() != wire.ProblemUnregistered {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// TestTaskStates has the wrong moves in the life of a task.
func TestTaskStates(t *testing.T) {
	r := start(t)
	c, night := r.client(reportID), r.client("spiffe://prod/night")
	t.Run("the same end twice, and another one", func(t *testing.T) {
		id := c.begin().Task.ID
		first, second, third := c.end(id, "completed"), c.end(id, "completed"), c.end(id, "failed")
		if first.status != 200 || string(first.body) != string(second.body) || string(first.body) != string(third.body) {
			t.Errorf("%s\n%s\n%s", first.body, second.body, third.body)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		begun := c.begin()
		id := begun.Task.ID
		c.end(id, "canceled")
		a := c.post(taskPath(id, "/tokens"), `{"audience":"orders"}`)
		c.refused(a, http.StatusGone, wire.ProblemTaskEnded)
		if a.problem.State != "canceled" || a.problem.Cause != "caller" {
			t.Errorf("%s", a.body)
		}
		beats := c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q},{"id":"tsk_nonsense"},{"id":""}]}`, id))
		var pulses wire.HeartbeatResponse
		beats.into(t, &pulses)
		if pulses.Tasks[0].State != "canceled" || pulses.Tasks[1].State != wire.StateUnknown || pulses.Tasks[2].State != wire.StateUnknown {
			t.Errorf("%s", beats.body)
		}
		var grant wire.Grant
		c.get("/v1/grants/"+begun.Tokens[0].GrantID).into(t, &grant)
		if grant.Live || grant.TaskState != "canceled" {
			t.Errorf("%+v", grant)
		}
	})
	t.Run("somebody else's is the same as unknown", func(t *testing.T) {
		begun := c.begin()
		id, unknown := begun.Task.ID, broker.NewTaskID(0)
		for _, path := range []string{"", "/tokens", "/end"} {
			method, body := "POST", `{"outcome":"completed"}`
			switch path {
			case "":
				method, body = "GET", ""
			case "/tokens":
				body = `{"audience":"orders"}`
			}
			foreign := night.send(method, taskPath(id, path), body, nil)
			missing := night.send(method, taskPath(string(unknown), path), body, nil)
			night.refused(foreign, http.StatusNotFound, wire.ProblemNotFound)
			foreign.problem.RequestID, missing.problem.RequestID = "", ""
			if fmt.Sprint(foreign.problem) != fmt.Sprint(missing.problem) {
				t.Errorf("%+v differs from %+v", foreign.problem, missing.problem)
			}
		}
		night.refused(night.get("/v1/grants/"+begun.Tokens[0].GrantID), http.StatusNotFound, wire.ProblemNotFound)
		if c.get(taskPath(id, "")).status != http.StatusOK {
			t.Error("the owner does not see it any more")
		}
	})
	t.Run("malformed IDs", func(t *testing.T) {
		for _, id := range []string{"x", "tsk_", "tsk_00", "tsk_00" + strings.Repeat("a", 25), "tsk_00" + strings.Repeat("a", 27),
			"tsk_00" + strings.Repeat("A", 26), "tsk_zz" + strings.Repeat("a", 26), "tsk_99" + strings.Repeat("a", 26), "gnt_00" + strings.Repeat("a", 26),
			"%00", "%2e%2e", "tsk_00%2f" + strings.Repeat("a", 25), strings.Repeat("a", 4000)} {
			c.refused(c.get(taskPath(id, "")), http.StatusNotFound, wire.ProblemNotFound)
		}
	})
	t.Run("bad ends", func(t *testing.T) {
		id := c.begin().Task.ID
		for _, outcome := range []string{"", "done", "revoked", "lapsed", "active", "Completed"} {
			c.refused(c.end(id, outcome), http.StatusUnprocessableEntity, wire.ProblemInvalid)
		}
		c.refused(c.post(taskPath(id, "/end"), `{"outcome":"failed","reason":"`+strings.Repeat("r", broker.MaxPurpose+1)+`"}`), 422, wire.ProblemInvalid)
		c.refused(c.post(taskPath(id, "/end"), `{"outcome":"failed","reason":"`+strings.Repeat("r", 1<<20)+`"}`), 413, wire.ProblemTooLarge)
		if a := c.get(taskPath(id, "")); !strings.Contains(string(a.body), `"state":"active"`) {
			t.Errorf("a refused end ended it: %s", a.body)
		}
	})
	t.Run("heartbeats out of bounds", func(t *testing.T) {
		c.refused(c.post(wire.PathHeartbeats, `{"tasks":[]}`), 422, wire.ProblemInvalid)
		c.refused(c.post(wire.PathHeartbeats, `{}`), 422, wire.ProblemInvalid)
		batch := func(n int) string {
			tasks := make([]string, n)
			for i := range tasks {
				tasks[i] = `{"id":"` + string(broker.NewTaskID(0)) + `"}`
			}
			return `{"tasks":[` + strings.Join(tasks, ",") + `]}`
		}
		if a := c.post(wire.PathHeartbeats, batch(broker.MaxHeartbeat)); a.status != http.StatusOK {
			t.Errorf("as many as allowed: %d %s", a.status, a.body)
		}
		c.refused(c.post(wire.PathHeartbeats, batch(broker.MaxHeartbeat+1)), 422, wire.ProblemInvalid)
	})
	t.Run("one key, many at once, one task", func(t *testing.T) {
		with := func(key string) func(*http.Request) {
			return func(req *http.Request) { req.Header.Set(wire.HeaderIdempotencyKey, key) }
		}
		var mu sync.Mutex
		ids := map[string]int{}
		away := 0
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				a := c.send("POST", wire.PathTasks, beginBody, with("once"))
				mu.Lock()
				defer mu.Unlock()
				if a.status == http.StatusServiceUnavailable {
					away++ // the disk was slow; what could not be recorded was taken back, and its key given up
					return
				}
				var begun wire.BeginResponse
				a.into(t, &begun)
				ids[begun.Task.ID+begun.Tokens[0].GrantID]++
			})
		}
		wg.Wait()
		if len(ids) != 1 && (away == 0 || len(ids) > 1+away) {
			t.Errorf("%d tasks for one key, and %d refusals", len(ids), away)
		}
		quoted := c.send("POST", wire.PathTasks, beginBody, with(`"once"`))
		var begun wire.BeginResponse
		quoted.into(t, &begun)
		if ids[begun.Task.ID+begun.Tokens[0].GrantID] == 0 {
			t.Error("a quoted key is another key")
		}
		other := strings.Replace(beginBody, "FIN-212", "FIN-213", 1)
		c.refused(c.send("POST", wire.PathTasks, other, with("once")), http.StatusConflict, wire.ProblemIdempotencyMismatch)
	})
	t.Run("heartbeat against end", func(t *testing.T) {
		for range 50 {
			id := c.begin().Task.ID
			var wg sync.WaitGroup
			wg.Go(func() { c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, id)) })
			wg.Go(func() { c.end(id, "completed") })
			wg.Wait()
			if a := c.get(taskPath(id, "")); !strings.Contains(string(a.body), `"state":"completed"`) {
				t.Fatalf("revived: %s", a.body)
			}
		}
	})
}
