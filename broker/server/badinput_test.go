package server_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
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

// TestRefusalsSayWhere names the member that is wrong, and does not repeat everything that was sent.
func TestRefusalsSayWhere(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	a := c.post(wire.PathTasks, begins(`,"tokens":[{"audience":"orders"},{"audience":"orders","scopes":["a","b "]}]`))
	if a.problem.Field != "tokens[1].scopes[1]" {
		t.Errorf("%s", a.body)
	}
	scopes := make([]string, broker.MaxScopes)
	for i := range scopes {
		scopes[i] = strings.Repeat("s", broker.MaxScopeBytes-3) + strconv.Itoa(100+i)
	}
	if a := c.post(wire.PathTasks, scoped(scopes...)); a.status != http.StatusForbidden || len(a.body) > 4096 {
		t.Errorf("%d with %d bytes", a.status, len(a.body))
	}
	if a := r.client(nobodyID).post(wire.PathTasks, beginBody); a.status != http.StatusForbidden || a.name() != wire.ProblemUnregistered {
		t.Errorf("%d %s", a.status, a.body)
	}
	c.refused(c.post(wire.PathHeartbeats, `{"tasks":[]}`), 422, wire.ProblemInvalid)
	c.refused(c.post(wire.PathHeartbeats, `{}`), 422, wire.ProblemInvalid)
	many := make([]string, broker.MaxHeartbeat)
	for i := range many {
		many[i] = string(broker.NewTaskID(0))
	}
	if a := c.post(wire.PathHeartbeats, beat(append([]string{many[0]}, many...)...)); a.status != 422 || a.name() != wire.ProblemInvalid {
		t.Errorf("one heartbeat too many: %d %s", a.status, a.body)
	}
	if a := c.post(wire.PathHeartbeats, beat(many...)); a.status != http.StatusOK {
		t.Errorf("as many as allowed: %d %s", a.status, a.body)
	}
}
