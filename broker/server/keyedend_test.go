package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// passerby is somebody without an identity, at the public listener.
func (r *replica) passerby() *caller {
	c := r.client("")
	c.base = r.Issuer()
	return c
}

// endByKey ends a task of report with a key, and nothing else.
func (c *caller) endByKey(task, key string) answer {
	return c.endBy(task, "EndKey "+key, fmt.Sprintf(`{"outcome":"failed","reason":"red","workload":%q}`, reportID))
}

func (c *caller) endBy(task, authorization, body string) answer {
	return c.send("POST", taskPath(task, "/end"), body, func(req *http.Request) { req.Header.Set("Authorization", authorization) })
}

// TestEndWithoutAnIdentity: who has nothing but the end key ends its task, once, and the audit log says so.
func TestEndWithoutAnIdentity(t *testing.T) {
	r := start(t)
	c, anyone := r.client(reportID), r.passerby()
	begun := c.begin()
	a := anyone.endByKey(begun.Task.ID, begun.EndKey)
	var receipt wire.Receipt
	a.into(t, &receipt)
	if a.status != http.StatusOK || receipt.State != "failed" || receipt.Cause != "caller" || !receipt.Durable || receipt.Grants != 1 || receipt.Reason != "red" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if text := string(c.get(taskPath(begun.Task.ID, "")).body); !strings.Contains(text, `"state":"failed"`) {
		t.Error(text)
	}
	// The first end wins, whoever comes after it.
	for name, again := range map[string]answer{"its key once more": anyone.endByKey(begun.Task.ID, begun.EndKey), "the workload": c.end(begun.Task.ID, "completed")} {
		if again.status != http.StatusOK || string(again.body) != string(a.body) {
			t.Errorf("%s: %d %s", name, again.status, again.body)
		}
	}
	over := c.begin()
	first := c.end(over.Task.ID, "completed")
	if a := anyone.endByKey(over.Task.ID, over.EndKey); a.status != http.StatusOK || string(a.body) != string(first.body) {
		t.Errorf("a task that had ended: %d %s", a.status, a.body)
	}
	r.eventually("the audit log has it", func() bool {
		log := r.auditLog()
		at := strings.Index(log, receipt.Event)
		if at < 0 {
			return false
		}
		line := log[strings.LastIndexByte(log[:at], '\n')+1:]
		line, _, _ = strings.Cut(line, "\n")
		if !strings.Contains(line, `"actor":"end key"`) || !strings.Contains(line, `"address":"127.0.0.1:`) || !strings.Contains(line, reportID) {
			t.Fatal(line)
		}
		return true
	})
}

// TestOnlyTheKeyOpens: every other secret, task and workload gets the same answer, and none costs the store
// anything.
func TestOnlyTheKeyOpens(t *testing.T) {
	fault := &atomic.Int32{}
	r := startFederated(t, nil, func(c *server.Config) { c.Store = faultyStore{c.Store, fault} })
	c, anyone := r.client(reportID), r.passerby()
	mine, other := c.begin(), c.begin()
	child := c.send("POST", taskPath(mine.Task.ID, "/children"), `{"name":"part","purpose":"p"}`, nil)
	var below wire.BeginResponse
	child.into(t, &below)
	good := fmt.Sprintf(`{"outcome":"failed","workload":%q}`, reportID)
	key, _ := strings.CutPrefix(mine.EndKey, "end_")
	deadline, mac, _ := strings.Cut(key, ".")
	fault.Store(hangs) // whatever asks the store does not come back in time
	same := ""
	for name, test := range map[string]struct{ task, authorization, body string }{
		"nothing":               {mine.Task.ID, "", good},
		"another task's":        {mine.Task.ID, "EndKey " + other.EndKey, good},
		"a parent's":            {below.Task.ID, "EndKey " + mine.EndKey, good},
		"a child's":             {mine.Task.ID, "EndKey " + below.EndKey, good},
		"another workload":      {mine.Task.ID, "EndKey " + mine.EndKey, `{"outcome":"failed","workload":"spiffe://prod/night"}`},
		"a workload below":      {mine.Task.ID, "EndKey " + mine.EndKey, fmt.Sprintf(`{"outcome":"failed","workload":"%s/x"}`, reportID)},
		"an unknown task":       {"tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa", "EndKey " + mine.EndKey, good},
		"no ID":                 {"x", "EndKey " + mine.EndKey, good},
		"a later deadline":      {mine.Task.ID, "EndKey end_9" + deadline + "." + mac, good},
		"no MAC":                {mine.Task.ID, "EndKey end_" + deadline + ".", good},
		"zeros":                 {mine.Task.ID, "EndKey end_" + deadline + "." + strings.Repeat("A", len(mac)), good},
		"another scheme":        {mine.Task.ID, "Bearer " + mine.EndKey, good},
		"no scheme":             {mine.Task.ID, mine.EndKey, good},
		"a token":               {mine.Task.ID, "EndKey " + mine.Tokens[0].AccessToken, good},
		"a scheme glued to it":  {mine.Task.ID, "EndKey\t" + mine.EndKey, good},
		"as long as headers go": {mine.Task.ID, "EndKey end_" + strings.Repeat("9", 8000), good},
	} {
		a := anyone.endBy(test.task, test.authorization, test.body)
		if a.status != http.StatusUnauthorized || a.name() != wire.ProblemBadEndKey || a.header.Get("WWW-Authenticate") != `EndKey realm="errand"` {
			t.Errorf("%s: %d %s %v", name, a.status, a.body, a.header)
		}
		body := strings.ReplaceAll(string(a.body), a.problem.RequestID, "")
		if same == "" {
			same = body
		}
		if body != same {
			t.Errorf("%s is told %s, and others %s", name, body, same)
		}
	}
	twice := anyone.send("POST", taskPath(mine.Task.ID, "/end"), good, func(req *http.Request) {
		req.Header["Authorization"] = []string{"EndKey " + mine.EndKey, "EndKey " + mine.EndKey}
	})
	if twice.status != http.StatusUnauthorized {
		t.Errorf("two keys: %d %s", twice.status, twice.body)
	}
	fault.Store(works)
	r.eventually("the replica is well again", func() bool { return r.Ready() == nil })
	if a := c.get(taskPath(mine.Task.ID, "")); !strings.Contains(string(a.body), `"state":"active"`) {
		t.Errorf("after all that: %s", a.body)
	}
	if a := anyone.endByKey(mine.Task.ID, mine.EndKey); a.status != http.StatusOK {
		t.Errorf("the right key: %d %s", a.status, a.body)
	}
}

// TestKeyedEndBadInput: with the right key, too, the request must be right.
func TestKeyedEndBadInput(t *testing.T) {
	r := start(t)
	c, anyone := r.client(reportID), r.passerby()
	begun := c.begin()
	filled := func(size int) string {
		text := fmt.Sprintf(`{"outcome":"failed","workload":%q}`, reportID)
		return text + strings.Repeat(" ", size-len(text))
	}
	for name, test := range map[string]struct {
		body   string
		status int
		say    string
	}{
		"no workload":        {`{"outcome":"failed"}`, 422, "workload is empty"},
		"no SPIFFE ID":       {`{"outcome":"failed","workload":"report"}`, 422, "is not a SPIFFE ID"},
		"no outcome":         {fmt.Sprintf(`{"workload":%q}`, reportID), 422, "outcome"},
		"another outcome":    {fmt.Sprintf(`{"outcome":"revoked","workload":%q}`, reportID), 422, "outcome"},
		"the key in it":      {fmt.Sprintf(`{"outcome":"failed","workload":%q,"end_key":%q}`, reportID, begun.EndKey), 422, "end_key has no place here"},
		"a wait":             {fmt.Sprintf(`{"outcome":"failed","workload":%q,"wait_seconds":1}`, reportID), 422, "wait_seconds"},
		"a long reason":      {fmt.Sprintf(`{"outcome":"failed","workload":%q,"reason":%q}`, reportID, strings.Repeat("x", broker.MaxPurpose+1)), 422, "reason"},
		"an unknown member":  {fmt.Sprintf(`{"outcome":"failed","workload":%q,"force":true}`, reportID), 400, "force is not known"},
		"a member twice":     {fmt.Sprintf(`{"outcome":"failed","outcome":"failed","workload":%q}`, reportID), 400, "twice"},
		"no JSON":            {`outcome=failed`, 400, "not a JSON object"},
		"one byte too large": {filled(httpapi.MaxKeyedEnd + 1), 413, ""},
	} {
		a := anyone.endBy(begun.Task.ID, "EndKey "+begun.EndKey, test.body)
		if a.status != test.status || !strings.Contains(a.problem.Detail, test.say) || strings.Contains(string(a.body), begun.EndKey) {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := c.send("POST", taskPath(begun.Task.ID, "/end"), filled(100), nil); a.status != 422 || !strings.Contains(a.problem.Detail, "workload is for the public listener") {
		t.Errorf("a workload at the workload listener: %d %s", a.status, a.body)
	}
	if a := anyone.get(taskPath(begun.Task.ID, "")); a.status != http.StatusNotFound {
		t.Errorf("reading at the public listener: %d %s", a.status, a.body)
	}
	if a := anyone.endBy(begun.Task.ID, "endkey "+begun.EndKey, filled(httpapi.MaxKeyedEnd)); a.status != http.StatusOK {
		t.Errorf("as large as it may be, and the scheme in small letters: %d %s", a.status, a.body)
	}
}

// TestKeyedEndWhileTheStoreIsAway is in force at once, as at the workload listener.
func TestKeyedEndWhileTheStoreIsAway(t *testing.T) {
	b := failing(away)
	r := startFederated(t, nil, func(c *server.Config) { c.Store = b.store(c.Store) })
	c, anyone := r.client(reportID), r.passerby()
	begun := c.beginAs(`{"name":"export","purpose":"FIN-212","lease_seconds":600,"tokens":[{"audience":"orders"}]}`)
	b.fail()
	a := anyone.endByKey(begun.Task.ID, begun.EndKey)
	if a.status != http.StatusAccepted || !strings.Contains(string(a.body), `"durable":false`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	b.mend()
	r.eventually("it is durable", func() bool { return anyone.endByKey(begun.Task.ID, begun.EndKey).status == http.StatusOK })
	r.eventually("the audit log has it", func() bool { return strings.Contains(r.auditLog(), `"actor":"end key"`) })
}

// TestRateOfAddresses: those without an identity are held to one by their address, before anything of them
// is looked at; workloads notice nothing.
func TestRateOfAddresses(t *testing.T) {
	at := time.Now()
	r := within(t, httpapi.Limits{Rate: 1, Burst: 3}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c, anyone := r.client(reportID), r.passerby()
	begun := c.begin()
	for range 3 {
		if a := anyone.endByKey(begun.Task.ID, "end_1.x"); a.status != http.StatusUnauthorized {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := anyone.endByKey(begun.Task.ID, begun.EndKey)
	if a.status != http.StatusTooManyRequests || a.name() != wire.ProblemRateLimited || retryAfter(t, a) != time.Second {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := anyone.get(wire.PathJWKS); a.status != http.StatusOK {
		t.Errorf("the keys: %d %s", a.status, a.body)
	}
	if got := r.metric(`errand_rate_limited_total{kind="outside"}`); got != "1" {
		t.Errorf("%s were counted", got)
	}
	if a := c.endWith(begun.Task.ID, begun.EndKey); a.status != http.StatusOK {
		t.Errorf("the workload itself: %d %s", a.status, a.body)
	}
}
