package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The tests of families go through a catalogue of bad input by its numbers: 119 to 145 ask for what they
// must not have, 146 to 161 are lives, and 162 to 183 wrong moves in a task's life. What a broker does
// not have, as an owner that the caller names, is there as the nearest thing that can be tried.

// badCase is one of the catalogue: a begin that is refused, or something of its own.
type badCase struct {
	number  int
	name    string
	body    string
	status  int
	problem string
	do      func(*family)
}

// family is what the cases of one family are tried on.
type family struct {
	*testing.T
	r        *replica
	c, night *caller // report, and somebody else
}

// tryFamily runs the cases, and fails if a number from first to last is not among them.
func tryFamily(t *testing.T, first, last int, cases []badCase) {
	r := start(t)
	f := family{r: r, c: r.client(reportID), night: r.client("spiffe://prod/night")}
	there := map[int]bool{}
	for _, c := range cases {
		there[c.number] = true
		t.Run(fmt.Sprintf("%d %s", c.number, c.name), func(t *testing.T) {
			f := f
			f.T = t
			if c.do != nil {
				c.do(&f)
				return
			}
			a := f.c.post(wire.PathTasks, c.body)
			f.c.refused(a, c.status, c.problem)
			if c.problem == wire.ProblemDenied && (a.problem.DecisionID == "" || a.problem.Rule == "") {
				t.Errorf("the denial does not explain itself: %s", a.body)
			}
		})
	}
	for n := first; n <= last; n++ {
		if !there[n] {
			t.Errorf("number %d is not in the catalogue", n)
		}
	}
}

// begins is the body of a begin with more members.
func begins(members string) string { return `{"name":"n","purpose":"p"` + members + `}` }

func scoped(scopes ...string) string {
	quoted := make([]string, len(scopes))
	for i, s := range scopes {
		quoted[i] = strconv.Quote(s)
	}
	return begins(`,"scopes":[` + strings.Join(quoted, ",") + `]`)
}

func manyScopes(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = "s" + strconv.Itoa(i)
	}
	return out
}

// TestFamilyD asks for scopes, audiences and purposes that must not be had.
func TestFamilyD(t *testing.T) {
	denied := func(number int, name, body string) badCase {
		return badCase{number: number, name: name, body: body, status: 403, problem: wire.ProblemDenied}
	}
	invalid := func(number int, name, body string) badCase {
		return badCase{number: number, name: name, body: body, status: 422, problem: wire.ProblemInvalid}
	}
	cases := []badCase{
		{number: 119, name: "no scopes are those that may be had", do: func(f *family) {
			got := f.c.beginAs(begins(`,"scopes":[],"tokens":[{"audience":"orders","scopes":[]}]`))
			if strings.Join(got.Task.Scopes, " ") != "files:write orders:read" || got.Tokens[0].Scope != "orders:read" {
				f.Errorf("got %+v", got)
			}
		}},
		invalid(119, "an empty scope", scoped("")),
		denied(120, "scope that is not allowed", scoped("orders:write")),
		denied(121, "wildcard", scoped("*")),
		invalid(122, "scope twice", scoped("orders:read", "orders:read")),
		invalid(123, "scope with a space", scoped("orders:read orders:write")),
		invalid(123, "scope with a quote", scoped(`a"b`)),
		invalid(123, "scope with a backslash", scoped(`a\b`)),
		invalid(123, "scope with a line break", scoped("a\nb")),
		invalid(124, "too many scopes", scoped(manyScopes(broker.MaxScopes+1)...)),
		denied(124, "as many as may be asked for", scoped(manyScopes(broker.MaxScopes)...)),
		invalid(125, "scope too long", scoped(strings.Repeat("s", broker.MaxScopeBytes+1))),
		denied(125, "as long as it may be", scoped(strings.Repeat("s", broker.MaxScopeBytes))),
		denied(126, "other case", scoped("ORDERS:READ")),
		invalid(127, "homoglyph", scoped("orders:reаd")),
		denied(128, "more behind an allowed one", scoped("orders:readwrite")),
		denied(128, "less than an allowed one", scoped("orders:rea")),
		denied(129, "glob", scoped("orders:[a-z]")),
		denied(130, "path trick", scoped("orders:../admin")),
		invalid(131, "no audience", begins(`,"tokens":[{}]`)),
		invalid(131, "audience with a space", begins(`,"audiences":["orders "]`)),
		invalid(131, "empty audience", begins(`,"tokens":[{"audience":""}]`)),
		{number: 131, name: "two audiences for one token", body: begins(`,"tokens":[{"audience":["orders","files"]}]`), status: 400, problem: wire.ProblemMalformed},
		denied(133, "audience that the workload has nothing at", begins(`,"audiences":["payroll"]`)),
		{number: 133, name: "audience outside the task's ceiling", body: begins(`,"audiences":["orders"],"tokens":[{"audience":"files"}]`), status: 403, problem: wire.ProblemScopeExceeded},
		denied(133, "scope of another audience", begins(`,"tokens":[{"audience":"orders","scopes":["files:write"]}]`)),
		invalid(134, "no name", `{"purpose":"p"}`),
		invalid(134, "no purpose", `{"name":"n"}`),
		invalid(134, "blank purpose", `{"name":"n","purpose":" \t\n"}`),
		invalid(134, "purpose too long", `{"name":"n","purpose":"`+strings.Repeat("p", broker.MaxPurpose+1)+`"}`),
		denied(136, "template", scoped("{{.}}")),
		denied(136, "variable", scoped("${scope}")),
	}
	for name, audience := range map[string]string{
		"a dot behind it": "orders.", "other case": "Orders", "punycode": "xn--orders-abc", "a URL": "https://orders.internal",
		"a user": "https://report@orders.internal", "a path": "orders/../files",
	} {
		cases = append(cases, denied(131, "audience with "+name, begins(fmt.Sprintf(`,"audiences":[%q]`, audience))))
	}
	cases = append(cases, denied(132, "audience with a fragment", begins(`,"audiences":["orders#x"]`)))
	for number, members := range map[int][]string{
		135: {`"owner":"team-shop"`, `"workload":"spiffe://prod/night"`},
		137: {`"act":{"sub":"spiffe://prod/night"}`, `"sub":"spiffe://prod/night"`, `"delegators":["spiffe://prod/night"]`},
		144: {`"parent":"tsk_00` + strings.Repeat("a", 26) + `"`, `"id":"tsk_00` + strings.Repeat("a", 26) + `"`},
	} {
		for _, member := range members {
			cases = append(cases, badCase{number: number, name: "not the caller's to say: " + member, body: begins("," + member), status: 400, problem: wire.ProblemMalformed})
		}
	}
	tryFamily(t, 119, 145, append(cases, childrenOfFamilyD()...))
}

// childrenOfFamilyD has what a task below another one must not have.
func childrenOfFamilyD() []badCase {
	below := func(body string, status int, problem string) func(*family) {
		return func(f *family) {
			parent := f.c.beginAs(begins(`,"audiences":["orders"],"scopes":["orders:read"]`)).Task.ID
			f.c.refused(f.c.post(taskPath(parent, "/children"), body), status, problem)
		}
	}
	return []badCase{
		{number: 138, name: "child with more scopes", do: below(scoped("orders:read", "orders:write"), 403, wire.ProblemScopeExceeded)},
		{number: 139, name: "child with another audience", do: below(begins(`,"audiences":["files"]`), 403, wire.ProblemScopeExceeded)},
		{number: 140, name: "child of a task that has ended", do: func(f *family) {
			parent := f.c.begin().Task.ID
			f.c.end(parent, "completed")
			f.c.refused(f.c.post(taskPath(parent, "/children"), beginBody), 410, wire.ProblemTaskEnded)
		}},
		{number: 141, name: "child of somebody else's", do: func(f *family) {
			f.night.refused(f.night.post(taskPath(f.c.begin().Task.ID, "/children"), beginBody), 404, wire.ProblemNotFound)
		}},
		{number: 142, name: "one level too deep", do: func(f *family) {
			id := f.c.begin().Task.ID
			for range broker.MaxDepth - 1 {
				id = f.c.child(id, beginBody).Task.ID
			}
			f.c.refused(f.c.post(taskPath(id, "/children"), beginBody), 422, wire.ProblemInvalid)
		}},
		{number: 143, name: "one child too many", do: func(f *family) { // TestChildrenOfATask fills all places
			// The workload's own quota is met first by one that has a small one.
			small := f.r.client("spiffe://prod/small")
			root := small.begin().Task.ID
			small.child(root, begins(""))
			small.refused(small.post(taskPath(root, "/children"), begins("")), 429, wire.ProblemQuota)
		}},
		{number: 144, name: "child of itself", do: func(f *family) {
			// Nobody chooses an ID, so that a circle cannot be asked for: an ID that is not there yet is unknown.
			f.c.refused(f.c.post(taskPath(string(broker.NewTaskID(0)), "/children"), beginBody), 404, wire.ProblemNotFound)
		}},
		{number: 145, name: "locked between the question and the write", do: func(f *family) {
			lock := broker.Lock{Selector: broker.Selector{Subject: reportID, Audience: "files"}, Actor: "alice", Reason: "a test", Expires: time.Now().Add(time.Minute)}
			id, err := f.r.Broker().Lock(f.Context(), lock)
			if err != nil {
				f.Fatal(err)
			}
			// At once: this replica may not have read of the lock yet, and then the store says so.
			f.c.refused(f.c.post(wire.PathTasks, begins(`,"tokens":[{"audience":"files"}]`)), 403, wire.ProblemQuarantined)
			if err := f.r.Broker().Lift(f.Context(), broker.Lifting{Lock: id, Actor: "alice", Reason: "a test"}); err != nil {
				f.Fatal(err)
			}
			f.c.beginAs(begins(`,"tokens":[{"audience":"files"}]`))
		}},
	}
}

// TestFamilyE has lives that must be refused, those at the bounds that must not, and those that are cut.
func TestFamilyE(t *testing.T) {
	shape := func(number int, name, value string) badCase {
		return badCase{number: number, name: name, body: begins(`,"lease_seconds":` + value), status: 400, problem: wire.ProblemMalformed}
	}
	cases := []badCase{
		shape(148, "a millisecond", "0.001"), shape(152, "a fraction", "30.5"), shape(153, "a text", `"5m"`), shape(154, "an ISO duration", `"PT5M"`),
		{number: 155, name: "a lease longer than the deadline", do: func(f *family) {
			got := f.c.beginAs(begins(`,"lease_seconds":600,"deadline_seconds":60`)).Task
			if life := got.Deadline.Sub(got.BegunAt); life != time.Minute {
				f.Errorf("it lives for %s", life)
			}
		}},
		{number: 160, name: "a child and its token beyond the parent", do: func(f *family) {
			parent := f.c.beginAs(begins(`,"deadline_seconds":20`)).Task
			child := f.c.child(parent.ID, begins(`,"deadline_seconds":86400,"tokens":[{"audience":"orders","ttl_seconds":900}]`))
			if child.Task.Deadline.After(parent.Deadline) || child.Tokens[0].ExpiresIn > 20 {
				f.Errorf("parent %+v, child %+v", parent, child)
			}
		}},
		{number: 160, name: "a token beyond its task", do: func(f *family) {
			if got := f.c.beginAs(begins(`,"deadline_seconds":6,"tokens":[{"audience":"orders","ttl_seconds":900}]`)); got.Tokens[0].ExpiresIn > 6 {
				f.Errorf("%d s", got.Tokens[0].ExpiresIn)
			}
		}},
		{number: 161, name: "a token beyond the SVID", do: func(f *family) {
			c, notAfter := f.r.brief(30 * time.Second)
			begun := c.beginAs(begins(`,"tokens":[{"audience":"orders","ttl_seconds":900}]`))
			var grant wire.Grant
			if c.get("/v1/grants/"+begun.Tokens[0].GrantID).into(f.T, &grant); grant.ExpiresAt.After(notAfter) {
				f.Errorf("the SVID is good until %s, and the token until %s", notAfter, grant.ExpiresAt)
			}
		}},
	}
	for _, bound := range []struct {
		member    string
		low, high int64
		members   string
		numbers   map[int64]int
	}{
		{"lease_seconds", 5, 600, `,"lease_seconds":%d`, map[int64]int{0: 156, 4: 157, 601: 149}},
		{"deadline_seconds", 5, 86400, `,"deadline_seconds":%d`, map[int64]int{0: 146, -1: 158, 86401: 159}},
		{"tokens[0].ttl_seconds", 2, 900, `,"tokens":[{"audience":"orders","ttl_seconds":%d}]`, map[int64]int{0: 146, -1: 147, 901: 149, 1 << 31: 150, 1<<63 - 1: 151}},
	} {
		body := func(n int64) string { return begins(fmt.Sprintf(bound.members, n)) }
		for _, n := range []int64{bound.low, bound.high} {
			cases = append(cases, badCase{number: 149, name: fmt.Sprintf("%s of %d is good", bound.member, n), do: func(f *family) { f.c.beginAs(body(n)) }})
		}
		for _, n := range []int64{bound.low - 1, bound.high + 1, 0, -1, 1 << 31, 1<<53 + 1, 1<<63 - 1, -1 << 63} {
			number := bound.numbers[n]
			if number == 0 {
				number = 151
			}
			cases = append(cases, badCase{number: number, name: fmt.Sprintf("%s of %d", bound.member, n), do: func(f *family) {
				a := f.c.post(wire.PathTasks, body(n))
				f.c.refused(a, http.StatusUnprocessableEntity, wire.ProblemInvalid)
				if a.problem.Field != bound.member || !strings.Contains(a.problem.Detail, bound.member) {
					f.Errorf("it does not name its field: %s", a.body)
				}
			}})
		}
	}
	tryFamily(t, 146, 161, cases)
}

// brief is report with an SVID that does not last, and when that ends.
func (r *replica) brief(life time.Duration) (*caller, time.Time) {
	r.t.Helper()
	svid, err := r.ca.Issue(spiffeid.RequireFromString(reportID), life)
	if err != nil {
		r.t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: svid.PrivateKey, Certificate: [][]byte{svid.Certificates[0].Raw}}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &caller{r: r, base: r.BrokerURL(), http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, svid.Certificates[0].NotAfter
}

// TestFamilyF has the wrong moves in the life of a task.
func TestFamilyF(t *testing.T) {
	cases := append(endsOfFamilyF(), strangersOfFamilyF()...)
	tryFamily(t, 162, 183, append(cases, racesOfFamilyF()...))
}

func (f *family) revoke(id string) broker.Receipt {
	f.Helper()
	receipt, err := f.r.Broker().Revoke(f.Context(), broker.Revocation{Task: broker.TaskID(id), Actor: "alice", Reason: "a test"})
	if err != nil {
		f.Fatal(err)
	}
	return receipt
}

func (f *family) state(id string) wire.Task {
	f.Helper()
	var task wire.Task
	f.c.get(taskPath(id, "")).into(f.T, &task)
	return task
}

func beat(ids ...string) string {
	for i := range ids {
		ids[i] = fmt.Sprintf(`{"id":%q}`, ids[i])
	}
	return `{"tasks":[` + strings.Join(ids, ",") + `]}`
}

func endsOfFamilyF() []badCase {
	return []badCase{
		{number: 162, name: "the same end twice, and another one", do: func(f *family) {
			id := f.c.begin().Task.ID
			first, second, third := f.c.end(id, "completed"), f.c.end(id, "completed"), f.c.end(id, "failed")
			if first.status != 200 || string(first.body) != string(second.body) || string(first.body) != string(third.body) {
				f.Errorf("%s\n%s\n%s", first.body, second.body, third.body)
			}
		}},
		{number: 163, name: "completed after it was revoked", do: func(f *family) {
			id := f.c.begin().Task.ID
			revoked := f.revoke(id)
			var receipt wire.Receipt
			if f.c.end(id, "completed").into(f.T, &receipt); receipt.State != wire.StateRevoked || receipt.Event != string(revoked.Event) {
				f.Errorf("got %+v", receipt)
			}
		}},
		{number: 164, name: "revoked after it was completed", do: func(f *family) {
			id := f.c.begin().Task.ID
			f.c.end(id, "completed")
			if receipt := f.revoke(id); receipt.First || receipt.State != broker.Completed {
				f.Errorf("got %+v", receipt)
			}
		}},
		{number: 165, name: "beaten after the end", do: func(f *family) {
			id := f.c.begin().Task.ID
			f.c.end(id, "canceled")
			var pulses wire.HeartbeatResponse
			f.c.post(wire.PathHeartbeats, beat(id, "tsk_nonsense", "")).into(f.T, &pulses)
			if pulses.Tasks[0].State != "canceled" || pulses.Tasks[1].State != wire.StateUnknown || pulses.Tasks[2].State != wire.StateUnknown {
				f.Errorf("%+v", pulses)
			}
		}},
		{number: 166, name: "beaten too late", do: func(f *family) { // TestP5_ALapseIsExact has the milliseconds
			id := f.c.beginAs(begins(`,"deadline_seconds":5,"lease_seconds":5`)).Task.ID
			f.r.eventually("its time is over", func() bool { return f.state(id).State != wire.StateActive })
			was := f.state(id)
			f.c.post(wire.PathHeartbeats, beat(id))
			if is := f.state(id); is.State != was.State || !is.EndedAt.Equal(*was.EndedAt) {
				f.Errorf("it was %+v, and is %+v", was, is)
			}
		}},
		{number: 174, name: "beaten beyond the deadline", do: func(f *family) {
			task := f.c.beginAs(begins(`,"deadline_seconds":5,"lease_seconds":600`)).Task
			f.r.eventually("its time is over", func() bool {
				f.c.post(wire.PathHeartbeats, beat(task.ID))
				return f.state(task.ID).State != wire.StateActive
			})
			if got := f.state(task.ID); !got.Deadline.Equal(task.Deadline) || got.State != wire.StateExpired || !got.EndedAt.Equal(task.Deadline) {
				f.Errorf("the deadline was %s; got %+v", task.Deadline, got)
			}
		}},
		{number: 181, name: "a token after the end", do: func(f *family) {
			begun := f.c.begin()
			f.c.end(begun.Task.ID, "canceled")
			a := f.c.post(taskPath(begun.Task.ID, "/tokens"), `{"audience":"orders"}`)
			f.c.refused(a, http.StatusGone, wire.ProblemTaskEnded)
			if a.problem.State != "canceled" || a.problem.Cause != "caller" {
				f.Errorf("%s", a.body)
			}
			var grant wire.Grant
			if f.c.get("/v1/grants/"+begun.Tokens[0].GrantID).into(f.T, &grant); grant.Live || grant.TaskState != "canceled" {
				f.Errorf("%+v", grant)
			}
		}},
		{number: 183, name: "ends that say too much, or nothing", do: func(f *family) {
			id := f.c.begin().Task.ID
			for _, outcome := range []string{"", "done", "revoked", "lapsed", "active", "Completed"} {
				f.c.refused(f.c.end(id, outcome), http.StatusUnprocessableEntity, wire.ProblemInvalid)
			}
			f.c.refused(f.c.post(taskPath(id, "/end"), `{"outcome":"failed","reason":"`+strings.Repeat("r", broker.MaxPurpose+1)+`"}`), 422, wire.ProblemInvalid)
			f.c.refused(f.c.post(taskPath(id, "/end"), `{"outcome":"failed","reason":"`+strings.Repeat("r", 1<<20)+`"}`), 413, wire.ProblemTooLarge)
			f.c.refused(f.c.post(taskPath(id, "/end"), `{"outcome":"completed","result":{"rows":1}}`), 400, wire.ProblemMalformed)
			if got := f.state(id); got.State != wire.StateActive {
				f.Errorf("a refused end ended it: %+v", got)
			}
		}},
	}
}

func strangersOfFamilyF() []badCase {
	return []badCase{
		{number: 167, name: "beaten by somebody else", do: func(f *family) {
			task := f.c.begin().Task
			var pulses wire.HeartbeatResponse
			if f.night.post(wire.PathHeartbeats, beat(task.ID)).into(f.T, &pulses); pulses.Tasks[0].State != wire.StateUnknown {
				f.Errorf("%+v", pulses)
			}
			if got := f.state(task.ID); !got.LeaseExpiresAt.Equal(task.LeaseExpiresAt) {
				f.Errorf("the lease was until %s, and is until %s", task.LeaseExpiresAt, got.LeaseExpiresAt)
			}
		}},
		{number: 168, name: "beaten with another SVID of the same ID", do: func(f *family) {
			id := f.c.begin().Task.ID
			var pulses wire.HeartbeatResponse
			if f.r.client(reportID).post(wire.PathHeartbeats, beat(id)).into(f.T, &pulses); pulses.Tasks[0].State != wire.StateActive {
				f.Errorf("%+v", pulses)
			}
		}},
		{number: 169, name: "ended by the parent", do: func(f *family) {
			parent := f.c.begin().Task.ID
			child := f.c.child(parent, beginBody).Task.ID
			f.c.end(parent, "completed")
			if got := f.state(child); got.State != wire.StateCanceled || got.Cause != "parent" {
				f.Errorf("got %+v", got)
			}
		}},
		{number: 170, name: "a child that ends does not end its parent", do: func(f *family) {
			parent := f.c.begin().Task.ID
			f.c.end(f.c.child(parent, beginBody).Task.ID, "failed")
			if got := f.state(parent); got.State != wire.StateActive {
				f.Errorf("got %+v", got)
			}
		}},
		{number: 171, name: "an unknown one", do: func(f *family) {
			f.c.refused(f.c.end(string(broker.NewTaskID(0)), "completed"), 404, wire.ProblemNotFound)
		}},
		{number: 172, name: "malformed IDs", do: func(f *family) {
			for _, id := range []string{"x", "tsk_", "tsk_00", "tsk_00" + strings.Repeat("a", 25), "tsk_00" + strings.Repeat("a", 27),
				"tsk_00" + strings.Repeat("A", 26), "tsk_zz" + strings.Repeat("a", 26), "tsk_99" + strings.Repeat("a", 26), "gnt_00" + strings.Repeat("a", 26),
				"%00", "%2e%2e", "tsk_00%2f" + strings.Repeat("a", 25), strings.Repeat("a", 4000)} {
				f.c.refused(f.c.get(taskPath(id, "")), http.StatusNotFound, wire.ProblemNotFound)
			}
		}},
		{number: 173, name: "somebody else's is the same as unknown", do: (*family).foreign},
		{number: 182, name: "a client that comes back in time, and one that does not", do: (*family).comeBack},
	}
}

// comeBack tries until the machine has time for a second stream within the second.
func (f *family) comeBack() {
	for range 10 {
		if f.comesBack() {
			return
		}
	}
	f.Error("in ten tries no second stream came within the second")
}

// comesBack: a client whose stream is lost has a second to open another one, which then counts as the first did. It
// returns false when the machine let the second pass.
func (f *family) comesBack() bool {
	once, leave := context.WithCancel(f.Context())
	id := f.c.beginAs(begins(`,"presence":true`)).Task.ID
	f.follow(once, id)
	leave()
	f.r.eventually("the loss is known", func() bool { return f.r.lease(id).Stream == "" })
	cut := f.r.lease(id)
	again, goAway := context.WithCancel(f.Context())
	defer goAway()
	f.follow(again, id)
	if !f.r.lease(id).LeaseEnd.After(cut.LeaseEnd) && time.Now().After(cut.LeaseEnd) {
		return false
	}
	time.Sleep(time.Until(cut.LeaseEnd.Add(100 * time.Millisecond)))
	if got := f.state(id); got.State != wire.StateActive || got.LeaseExpiresAt.Sub(cut.LeaseEnd) < 10*time.Second {
		f.Errorf("with another stream in time: got %+v", got)
	}
	gone := time.Now()
	goAway()
	f.r.eventually("it has ended", func() bool { return f.state(id).State != wire.StateActive })
	if got := f.state(id); got.State != wire.StateLapsed || got.Cause != "presence" || got.EndedAt.Sub(gone) > busy(2*time.Second) {
		f.Errorf("without any, since %s: got %+v", gone, got)
	}
	return true
}

// follow follows a task until ctx ends; it returns when the stream has begun.
func (f *family) follow(ctx context.Context, id string) {
	f.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", f.c.base+wire.PathEvents+"?"+url.Values{"task": {id}}.Encode(), nil)
	if err != nil {
		f.Fatal(err)
	}
	// A connection of its own, which is closed with ctx.
	transport := f.c.http.Transport.(*http.Transport).Clone()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		f.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		f.Fatalf("follow: %d", resp.StatusCode)
	}
	f.Cleanup(func() { resp.Body.Close(); transport.CloseIdleConnections() })
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		f.Fatal(err)
	}
}

func (f *family) foreign() {
	begun := f.c.begin()
	id, unknown := begun.Task.ID, broker.NewTaskID(0)
	for path, body := range map[string]string{"": "", "/tokens": `{"audience":"orders"}`, "/end": `{"outcome":"completed"}`, "/children": beginBody} {
		method := "POST"
		if path == "" {
			method = "GET"
		}
		foreign := f.night.send(method, taskPath(id, path), body, nil)
		missing := f.night.send(method, taskPath(string(unknown), path), body, nil)
		f.night.refused(foreign, http.StatusNotFound, wire.ProblemNotFound)
		foreign.problem.RequestID, missing.problem.RequestID = "", ""
		if fmt.Sprint(foreign.problem) != fmt.Sprint(missing.problem) {
			f.Errorf("%+v differs from %+v", foreign.problem, missing.problem)
		}
	}
	f.night.refused(f.night.get("/v1/grants/"+begun.Tokens[0].GrantID), http.StatusNotFound, wire.ProblemNotFound)
	if got := f.state(id); got.State != wire.StateActive {
		f.Errorf("it is %+v", got)
	}
}

// racesOfFamilyF are few rounds through everything; the tests of broker have a thousand of each.
func racesOfFamilyF() []badCase {
	const rounds = 40
	return []badCase{
		{number: 175, name: "a key with another request", do: func(f *family) {
			f.c.send("POST", wire.PathTasks, beginBody, keyed("other"))
			other := strings.Replace(beginBody, "FIN-212", "FIN-213", 1)
			f.c.refused(f.c.send("POST", wire.PathTasks, other, keyed("other")), http.StatusConflict, wire.ProblemIdempotencyMismatch)
		}},
		{number: 176, name: "one key, a hundred at once, one task", do: (*family).oneKey},
		{number: 177, name: "a key of a task that has ended", do: func(f *family) {
			var begun wire.BeginResponse
			f.c.send("POST", wire.PathTasks, beginBody, keyed("ended")).into(f.T, &begun)
			f.c.end(begun.Task.ID, "completed")
			f.c.refused(f.c.send("POST", wire.PathTasks, beginBody, keyed("ended")), http.StatusGone, wire.ProblemTaskEnded)
		}},
		{number: 178, name: "beaten while it ends", do: func(f *family) {
			for range rounds {
				id := f.c.begin().Task.ID
				var wg sync.WaitGroup
				wg.Go(func() { f.c.post(wire.PathHeartbeats, beat(id)) })
				wg.Go(func() { f.c.end(id, "completed") })
				wg.Wait()
				if got := f.state(id); got.State != wire.StateCompleted {
					f.Fatalf("got %+v", got)
				}
			}
		}},
		{number: 179, name: "a child while its parent is revoked", do: func(f *family) {
			for range rounds {
				parent := f.c.begin().Task.ID
				var a answer
				var wg sync.WaitGroup
				wg.Go(func() { a = f.c.post(taskPath(parent, "/children"), beginBody) })
				wg.Go(func() { f.revoke(parent) })
				wg.Wait()
				if a.status == http.StatusGone {
					continue
				}
				var child wire.BeginResponse
				a.into(f.T, &child)
				var grant wire.Grant
				if f.c.get("/v1/grants/"+child.Tokens[0].GrantID).into(f.T, &grant); grant.Live || a.status != http.StatusCreated {
					f.Fatalf("%d, and then %+v", a.status, grant)
				}
			}
		}},
		{number: 180, name: "revoked twice at once", do: func(f *family) {
			for range rounds {
				id := f.c.begin().Task.ID
				var one, two broker.Receipt
				var wg sync.WaitGroup
				wg.Go(func() { one = f.revoke(id) })
				wg.Go(func() { two = f.revoke(id) })
				wg.Wait()
				if one.First == two.First || one.Event != two.Event {
					f.Fatalf("%+v and %+v", one, two)
				}
			}
		}},
	}
}

func keyed(key string) func(*http.Request) {
	return func(req *http.Request) { req.Header.Set(wire.HeaderIdempotencyKey, key) }
}

func (f *family) oneKey() {
	var mu sync.Mutex
	ids := map[string]int{}
	away := 0
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			a := f.c.send("POST", wire.PathTasks, beginBody, keyed("once"))
			mu.Lock()
			defer mu.Unlock()
			if a.status == http.StatusServiceUnavailable {
				away++ // the disk was slow; what could not be recorded was taken back, and its key given up
				return
			}
			var begun wire.BeginResponse
			if err := json.Unmarshal(a.body, &begun); err != nil || len(begun.Tokens) != 1 {
				f.Errorf("%d %s: %v", a.status, a.body, err)
				return
			}
			ids[begun.Task.ID+begun.Tokens[0].GrantID]++
		})
	}
	wg.Wait()
	if len(ids) != 1 && (away == 0 || len(ids) > 1+away) {
		f.Errorf("%d tasks for one key, and %d refusals", len(ids), away)
	}
	var begun wire.BeginResponse
	f.c.send("POST", wire.PathTasks, beginBody, keyed(`"once"`)).into(f.T, &begun)
	if ids[begun.Task.ID+begun.Tokens[0].GrantID] == 0 {
		f.Error("a quoted key is another key")
	}
}
