package server_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

const (
	nightID = "spiffe://prod/night"
	crowdID = "spiffe://prod/crowd"
)

// delegate delegates a task and checks that it worked.
func (c *caller) delegate(id, to, more string) wire.DelegationResponse {
	c.r.t.Helper()
	a := c.post(taskPath(id, "/delegations"), fmt.Sprintf(`{"to":%q,"purpose":"FIN-213"%s}`, to, more))
	if a.status != http.StatusCreated {
		c.r.t.Fatalf("delegate: %d %s", a.status, a.body)
	}
	var out wire.DelegationResponse
	a.into(c.r.t, &out)
	return out
}

// joining is a join with a token for orders; more follows in its body.
func joining(handle, more string) string {
	return fmt.Sprintf(`{"handle":%q,"name":"sub-export","purpose":"FIN-213","tokens":[{"audience":"orders"}]%s}`, handle, more)
}

// join joins by a handle and checks that it worked.
func (c *caller) join(handle string) wire.BeginResponse {
	c.r.t.Helper()
	a := c.post(wire.PathJoins, joining(handle, ""))
	if a.status != http.StatusCreated {
		c.r.t.Fatalf("join: %d %s", a.status, a.body)
	}
	var out wire.BeginResponse
	a.into(c.r.t, &out)
	if a.header.Get("Location") != wire.PathTasks+"/"+out.Task.ID || out.EndKey == "" {
		c.r.t.Errorf("headers %v, body %s", a.header, a.body)
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.secrets = append(c.r.secrets, out.EndKey, out.Tokens[0].AccessToken)
	return out
}

// TestDelegatedTokensDie at a verifier and for look-ups: with a task above, and by a word about anybody in whose
// name they are; and not by one about somebody else. Report's task is delegated to night, and that one's to crowd.
func TestDelegatedTokensDie(t *testing.T) {
	r := within(t, unhurried, crowded)
	v := r.verifier()
	report, reportPeer := r.bearer(reportID)
	night, nightPeer := r.bearer(nightID)
	crowd, crowdPeer := r.bearer(crowdID)
	revoke := func(s broker.Selector) func(t *testing.T, _ [3]wire.BeginResponse) {
		return func(t *testing.T, _ [3]wire.BeginResponse) {
			if _, err := r.Broker().Revoke(t.Context(), broker.Revocation{Selector: s, Actor: "alice", Reason: "a test"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		kill func(*testing.T, [3]wire.BeginResponse)
		dead [3]bool
	}{
		"the first's task":        {func(_ *testing.T, b [3]wire.BeginResponse) { report.end(b[0].Task.ID, "completed") }, [3]bool{true, true, true}},
		"the second's task":       {func(_ *testing.T, b [3]wire.BeginResponse) { night.end(b[1].Task.ID, "failed") }, [3]bool{false, true, true}},
		"the third's task":        {func(_ *testing.T, b [3]wire.BeginResponse) { crowd.end(b[2].Task.ID, "failed") }, [3]bool{false, false, true}},
		"the first by name":       {revoke(broker.Selector{Subject: reportID}), [3]bool{true, true, true}},
		"the second by name":      {revoke(broker.Selector{Subject: nightID}), [3]bool{false, true, true}},
		"the third by name":       {revoke(broker.Selector{Subject: crowdID, Audience: "orders"}), [3]bool{false, false, true}},
		"the domain":              {revoke(broker.Selector{Subject: "spiffe://prod/*", Scope: "orders:read"}), [3]bool{true, true, true}},
		"the second's, elsewhere": {revoke(broker.Selector{Subject: nightID, Audience: "files"}), [3]bool{}},
		"somebody else":           {revoke(broker.Selector{Subject: reportID + "/x"}), [3]bool{}},
	} {
		t.Run(name, func(t *testing.T) {
			var begun [3]wire.BeginResponse
			begun[0] = report.begin()
			begun[1] = night.join(report.delegate(begun[0].Task.ID, nightID, "").Handle)
			begun[2] = crowd.join(night.delegate(begun[1].Task.ID, crowdID, "").Handle)
			callers, peers := []*caller{report, night, crowd}, []*verify.Peer{reportPeer, nightPeer, crowdPeer}
			for i, b := range begun {
				g, err := v.Verify(t.Context(), b.Tokens[0].AccessToken, peers[i], verify.Scope("orders:read"))
				if err != nil {
					t.Fatalf("a live token of %s: %v", b.Task.Workload, err)
				}
				actors := [][]string{nil, {nightID}, {crowdID, nightID}}[i]
				if g.Workload != reportID || g.Client != b.Task.Workload || !slices.Equal(g.Actors, actors) || !g.Bound || !slices.Equal(b.Task.Delegators, [][]string{nil, {reportID}, {reportID, nightID}}[i]) {
					t.Errorf("grant %+v of task %+v", g, b.Task)
				}
				if _, err := v.Verify(t.Context(), b.Tokens[0].AccessToken, peers[(i+1)%3]); !errors.Is(err, verify.ErrUnbound) {
					t.Errorf("presented by somebody else in the chain: %v", err)
				}
			}
			test.kill(t, begun)
			for i, b := range begun {
				want := map[bool]error{true: verify.ErrRevoked, false: nil}[test.dead[i]]
				verdict := func() error {
					_, err := v.Verify(t.Context(), b.Tokens[0].AccessToken, peers[i])
					return err
				}
				if test.dead[i] {
					r.eventually("the verifier refuses it", func() bool { return verdict() != nil })
				}
				if err := verdict(); !errors.Is(err, want) {
					t.Errorf("the token of %s: %v; want %v", b.Task.Workload, err, want)
				}
				var grant wire.Grant
				if callers[i].get("/v1/grants/"+b.Tokens[0].GrantID).into(t, &grant); grant.Live == test.dead[i] {
					t.Errorf("the look-up says of the grant of %s that it is live: %t", b.Task.Workload, grant.Live)
				}
			}
		})
	}
}

// TestALockOfADelegatorOverHTTP: what it says to whoever acts in its name.
func TestALockOfADelegatorOverHTTP(t *testing.T) {
	r := start(t)
	report, night := r.client(reportID), r.client(nightID)
	a := report.begin()
	b := night.join(report.delegate(a.Task.ID, nightID, "").Handle)
	open := report.delegate(a.Task.ID, nightID, "").Handle
	if _, err := r.Broker().Lock(t.Context(), broker.Lock{
		Selector: broker.Selector{Subject: reportID}, Reason: "INC-7", Actor: "alice", Expires: time.Now().Add(time.Hour),
	}); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]answer{
		"a token": night.post(taskPath(b.Task.ID, "/tokens"), `{"audience":"orders"}`), "a task below": night.post(taskPath(b.Task.ID, "/children"), beginBody),
		"a delegation": night.post(taskPath(b.Task.ID, "/delegations"), `{"to":"spiffe://prod/small","purpose":"p"}`), "a join": night.post(wire.PathJoins, joining(open, "")),
	} {
		night.refused(answer, http.StatusForbidden, wire.ProblemQuarantined)
		if !strings.Contains(answer.problem.Detail, "INC-7") {
			t.Errorf("%s: %s", name, answer.body)
		}
	}
	night.begin() // in its own name
}

// TestBadDelegations: 137 to 144 of the catalogue, for tasks of two workloads.
func TestBadDelegations(t *testing.T) {
	r := within(t, unhurried)
	other := within(t, unhurried) // another deployment, with another secret
	report, night, small := r.client(reportID), r.client(nightID), r.client("spiffe://prod/small")
	root := report.begin().Task.ID
	deep := root
	for range broker.MaxDepth - 1 {
		deep = report.child(deep, beginBody).Task.ID
	}
	foreign := night.begin().Task.ID
	over := report.begin().Task.ID
	report.end(over, "completed")
	to := func(id, more string) func() answer {
		return func() answer {
			return report.post(taskPath(id, "/delegations"), fmt.Sprintf(`{"purpose":"p","to":%q%s}`, nightID, more))
		}
	}
	named := func(body string) func() answer {
		return func() answer { return report.post(taskPath(root, "/delegations"), body) }
	}
	handle := report.delegate(root, nightID, `,"audiences":["orders"],"scopes":["orders:read"]`).Handle
	join := func(c *caller, handle, more string) func() answer {
		return func() answer { return c.post(wire.PathJoins, joining(handle, more)) }
	}
	// elsewhere is a good handle of the other deployment.
	there := other.client(reportID)
	elsewhere := there.delegate(there.begin().Task.ID, nightID, "").Handle
	expired := report.delegate(root, nightID, `,"expires_in":1`)
	short := report.begin().Task.ID
	orphan := report.delegate(short, nightID, "").Handle
	report.end(short, "failed")
	time.Sleep(time.Until(expired.ExpiresAt))
	for name, test := range map[string]struct {
		do      func() answer
		status  int
		problem string
		field   string
	}{
		"137 to a stranger":               {named(`{"to":"spiffe://prod/nobody","purpose":"p"}`), 403, wire.ProblemDenied, ""},
		"137 to itself":                   {named(`{"to":"spiffe://prod/report","purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 to a trust domain":           {named(`{"to":"spiffe://prod","purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 to a name":                   {named(`{"to":"night","purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 to everybody":                {named(`{"to":"spiffe://prod/*","purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 to upper case":               {named(`{"to":"spiffe://PROD/night","purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 to two":                      {named(`{"to":["spiffe://prod/night"],"purpose":"p"}`), 400, wire.ProblemMalformed, ""},
		"137 to nobody":                   {named(`{"purpose":"p"}`), 422, wire.ProblemInvalid, "to"},
		"137 without a purpose":           {named(`{"to":"spiffe://prod/night"}`), 422, wire.ProblemInvalid, "purpose"},
		"137 for no time":                 {to(root, `,"expires_in":0`), 422, wire.ProblemInvalid, "expires_in"},
		"137 for less":                    {to(root, `,"expires_in":-1`), 422, wire.ProblemInvalid, "expires_in"},
		"137 for too long":                {to(root, `,"expires_in":86401`), 422, wire.ProblemInvalid, "expires_in"},
		"137 for an overflow":             {to(root, `,"expires_in":9223372036854775807`), 422, wire.ProblemInvalid, "expires_in"},
		"137 for half a second":           {to(root, `,"expires_in":0.5`), 400, wire.ProblemMalformed, ""},
		"137 for a text":                  {to(root, `,"expires_in":"5m"`), 400, wire.ProblemMalformed, ""},
		"137 a handle of somebody else's": {join(small, handle, ""), 403, wire.ProblemNotDelegate, ""},
		"137 a handle of its maker's":     {join(report, handle, ""), 403, wire.ProblemNotDelegate, ""},
		"137 a handle from elsewhere":     {join(night, elsewhere, ""), 422, wire.ProblemInvalid, "handle"},
		"137 a handle that was changed":   {join(night, handle[:len(handle)-2]+"AA", ""), 422, wire.ProblemInvalid, "handle"},
		"137 a handle that is too long":   {join(night, handle+strings.Repeat("A", 4097-len(handle)), ""), 422, wire.ProblemInvalid, "handle"},
		"137 no handle":                   {join(night, "", ""), 422, wire.ProblemInvalid, "handle"},
		"137 a handle that is over":       {join(night, expired.Handle, ""), 410, wire.ProblemHandleExpired, ""},
		"137 a parent beside the handle":  {join(night, handle, `,"parent":"`+root+`"`), 400, wire.ProblemMalformed, ""},
		"137 delegators of one's own":     {join(night, handle, `,"delegators":["spiffe://prod/small"]`), 400, wire.ProblemMalformed, ""},
		"138 more scopes than the task":   {to(root, `,"scopes":["orders:read","orders:write"]`), 403, wire.ProblemScopeExceeded, ""},
		"138 more scopes than delegated":  {join(night, handle, `,"scopes":["orders:write"]`), 403, wire.ProblemScopeExceeded, ""},
		"138 more scopes than its own":    {to(root, `,"audiences":["files"],"scopes":["files:write"]`), 403, wire.ProblemDenied, ""},
		"139 another audience":            {to(root, `,"audiences":["payroll"]`), 403, wire.ProblemScopeExceeded, ""},
		"139 another than delegated":      {join(night, handle, `,"audiences":["files"]`), 403, wire.ProblemScopeExceeded, ""},
		"140 of a task that has ended":    {to(over, ""), 410, wire.ProblemTaskEnded, ""},
		"140 the delegator's task ended":  {join(night, orphan, ""), 410, wire.ProblemTaskEnded, ""},
		"141 of somebody else's task":     {to(foreign, ""), 404, wire.ProblemNotFound, ""},
		"141 of no task":                  {to("tsk_1", ""), 404, wire.ProblemNotFound, ""},
		"142 of the deepest task":         {to(deep, ""), 422, wire.ProblemInvalid, "task"},
		"144 adopt somebody else's":       {func() answer { return night.post(taskPath(root, "/adopt"), "") }, 404, wire.ProblemNotFound, ""},
		"144 adopt what has ended":        {func() answer { return report.post(taskPath(over, "/adopt"), "") }, 410, wire.ProblemTaskEnded, ""},
		"144 adopt with a body":           {func() answer { return report.post(taskPath(root, "/adopt"), `{"holder":7}`) }, 400, wire.ProblemMalformed, ""},
		"144 end as nobody":               {func() answer { return report.post(taskPath(root, "/end"), `{"outcome":"completed","holder":-1}`) }, 422, wire.ProblemInvalid, "holder"},
		"144 end as half":                 {func() answer { return report.post(taskPath(root, "/end"), `{"outcome":"completed","holder":1.5}`) }, 400, wire.ProblemMalformed, ""},
		"144 end as somebody else":        {func() answer { return report.post(taskPath(root, "/end"), `{"outcome":"completed","holder":2}`) }, 409, wire.ProblemAdopted, ""},
		"144 follow as nobody":            {func() answer { return report.get(eventsOf(root + ":0")) }, 422, wire.ProblemInvalid, "task"},
		"144 follow as 01":                {func() answer { return report.get(eventsOf(root + ":01")) }, 422, wire.ProblemInvalid, "task"},
		"144 follow as +1":                {func() answer { return report.get(eventsOf(root + ":+1")) }, 422, wire.ProblemInvalid, "task"},
		"144 follow as two":               {func() answer { return report.get(eventsOf(root+":1", root+":2")) }, 422, wire.ProblemInvalid, "task"},
	} {
		t.Run(name, func(t *testing.T) {
			a := test.do()
			report.refused(a, test.status, test.problem)
			if a.problem.Field != test.field {
				t.Errorf("field %q; want %q: %s", a.problem.Field, test.field, a.body)
			}
			if (test.problem == wire.ProblemDenied || test.problem == wire.ProblemScopeExceeded) && (len(a.problem.Missing) == 0 || a.problem.DecisionID == "" || a.problem.Rule == "") {
				t.Errorf("the denial does not explain itself: %s", a.body)
			}
		})
	}
	night.join(handle) // all that has not used it
	night.refused(night.post(wire.PathJoins, joining(handle, "")), http.StatusGone, wire.ProblemHandleUsed)
	r.eventually("thefts are recorded", func() bool {
		seen := map[string]bool{}
		for _, line := range r.lines("request.denied") {
			seen[line.Rule+" "+line.Workload+" "+line.To] = true
		}
		return seen["delegation/not-delegate spiffe://prod/small "+nightID] && seen["delegation/not-delegate "+reportID+" "+nightID] && seen["delegation/used "+nightID+" "]
	})
}

// TestAHandleJoinsOnceOverHTTP, however many come at once, and a key stands for that one.
func TestAHandleJoinsOnceOverHTTP(t *testing.T) {
	r := within(t, unhurried, crowded)
	report, crowd := r.client(reportID), r.client(crowdID)
	root := report.begin().Task.ID
	// Where the disk takes more than a second, one that has joined is taken back, and leaves the place to another one.
	for got := map[int]int{http.StatusServiceUnavailable: 1}; got[http.StatusServiceUnavailable] > 0; {
		if got = crowd.joinAtOnce(report.delegate(root, crowdID, "").Handle, 100); got[http.StatusCreated] > 1 {
			t.Errorf("answers %v", got)
		}
		if got[http.StatusServiceUnavailable] == 0 && !maps.Equal(got, map[int]int{http.StatusCreated: 1, http.StatusGone: 99}) {
			t.Errorf("answers %v", got)
		}
	}
	second := report.delegate(root, crowdID, "").Handle
	keyed := func(handle string) answer {
		return crowd.send("POST", wire.PathJoins, joining(handle, ""), func(r *http.Request) { r.Header.Set(wire.HeaderIdempotencyKey, "k1") })
	}
	var first, again wire.BeginResponse
	keyed(second).into(t, &first)
	if keyed(second).into(t, &again); first.Task.ID == "" || first.Task.ID != again.Task.ID || len(again.Tokens) != 1 || again.Tokens[0].GrantID != first.Tokens[0].GrantID {
		t.Errorf("repeated: %+v, and then %+v", first, again)
	}
	crowd.refused(keyed(report.delegate(root, crowdID, "").Handle), http.StatusConflict, wire.ProblemIdempotencyMismatch)
}

// joinAtOnce has so many try one handle, and counts the answers.
func (c *caller) joinAtOnce(handle string, many int) map[int]int {
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			a := c.post(wire.PathJoins, joining(handle, ""))
			mu.Lock()
			defer mu.Unlock()
			if got[a.status]++; a.status != http.StatusCreated && a.status != http.StatusServiceUnavailable && a.name() != wire.ProblemHandleUsed {
				c.r.t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	return got
}

// TestDelegationsAreRecorded with everything that there is to say, and a handle is in no log.
func TestDelegationsAreRecorded(t *testing.T) {
	r := start(t)
	report, night := r.client(reportID), r.client(nightID)
	a := report.begin()
	d := report.delegate(a.Task.ID, nightID, `,"audiences":["orders"]`)
	b := night.join(d.Handle)
	adopted := report.post(taskPath(a.Task.ID, "/adopt"), "")
	if adopted.status != http.StatusOK {
		t.Fatalf("adopt: %d %s", adopted.status, adopted.body)
	}
	lines := r.linesAbout(map[string]int{"task.delegated": 1, "task.adopted": 1}, a.Task.ID)
	if l := lines[0]; l.Delegation != d.ID || l.To != nightID || l.Workload != reportID || !slices.Equal(l.Audiences, []string{"orders"}) || l.Scope != "orders:read" ||
		l.Purpose != "FIN-213" || l.Expires == nil || !l.Expires.Equal(d.ExpiresAt) || l.Decision == "" || l.Thumbprint == "" || l.Address == "" {
		t.Errorf("delegated: %+v", l)
	}
	if l := lines[1]; l.Holder != 2 || l.Actor != reportID {
		t.Errorf("adopted: %+v", l)
	}
	for _, l := range r.linesAbout(map[string]int{"task.begun": 1, "grant.issued": 1}, b.Task.ID) {
		if !slices.Equal(l.Delegators, []string{reportID}) || l.Workload != nightID || l.Kind == "task.begun" && l.Delegation != d.ID {
			t.Errorf("joined: %+v", l)
		}
	}
	if strings.Contains(r.logs.String(), d.Handle) {
		t.Error("the handle is in the log")
	}
}

// TestAdoptionOverHTTP: the answer, and what an earlier holder is told everywhere.
func TestAdoptionOverHTTP(t *testing.T) {
	r := start(t)
	c := r.client(reportID)
	begun := c.beginAs(strings.Replace(beginBody, "{", `{"presence":true,`, 1))
	id := begun.Task.ID
	first := c.stream(eventsOf(id+":1"), "")
	first.next(t, wire.EventBeat)
	a := r.client(reportID).post(taskPath(id, "/adopt"), "{}")
	var adopted wire.BeginResponse
	if a.into(t, &adopted); a.status != http.StatusOK || adopted.Task.Holder != 2 || adopted.EndKey != begun.EndKey || len(adopted.Tokens) != 0 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var told wire.TaskEnded
	if first.into(t, wire.EventTaskEnded, &told); told != (wire.TaskEnded{ID: id, State: wire.StateAdopted}) {
		t.Errorf("told %+v", told)
	}
	second := c.stream(eventsOf(id+":2"), "")
	second.next(t, wire.EventBeat)
	var pulses wire.HeartbeatResponse
	c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q,"holder":1,"note":"old"},{"id":%q,"holder":2},{"id":%q}]}`, id, id, id)).into(t, &pulses)
	var states []string
	for _, p := range pulses.Tasks {
		states = append(states, p.State)
	}
	if !slices.Equal(states, []string{wire.StateAdopted, wire.StateActive, wire.StateActive}) || pulses.Tasks[0].LeaseExpiresIn != 0 {
		t.Errorf("pulses %+v", pulses)
	}
	c.refused(c.post(taskPath(id, "/end"), fmt.Sprintf(`{"outcome":"completed","holder":1,"end_key":%q}`, begun.EndKey)), http.StatusConflict, wire.ProblemAdopted)
	var task wire.Task
	if c.get(taskPath(id, "")).into(t, &task); task.State != wire.StateActive || task.Holder != 2 || task.Note != "" {
		t.Errorf("the task is %+v", task)
	}
	if a := c.post(taskPath(id, "/end"), `{"outcome":"completed","holder":2}`); a.status != http.StatusOK {
		t.Errorf("the holder's end: %d %s", a.status, a.body)
	}
}

// TestRateOfDelegations is that of begins, and so are those of joins and adoptions.
func TestRateOfDelegations(t *testing.T) {
	at := time.Now()
	r := within(t, httpapi.Limits{IssueRate: 1, IssueBurst: 1}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c := r.client(reportID)
	id := c.begin().Task.ID
	for path, body := range map[string]string{
		taskPath(id, "/delegations"): `{"to":"spiffe://prod/night","purpose":"p"}`, wire.PathJoins: joining("hdl_", ""), taskPath(id, "/adopt"): "",
	} {
		a := c.post(path, body)
		c.refused(a, http.StatusTooManyRequests, wire.ProblemRateLimited)
		retryAfter(t, a)
	}
	if a := c.end(id, "completed"); a.status != http.StatusOK {
		t.Errorf("an end: %d %s", a.status, a.body)
	}
}

// TestClaimsOfADelegatedToken are those of RFC 8693, for verifiers in other languages.
func TestClaimsOfADelegatedToken(t *testing.T) {
	r := start(t)
	report, night := r.client(reportID), r.client(nightID)
	token := night.join(report.delegate(report.begin().Task.ID, nightID, "").Handle).Tokens[0].AccessToken
	for name, want := range map[string]string{
		"sub": `"spiffe://prod/report"`, "client_id": `"spiffe://prod/night"`, "act": `{"sub":"spiffe://prod/night"}`,
	} {
		if got := claim(t, token, name); string(got) != want {
			t.Errorf("%s is %s; want %s", name, got, want)
		}
	}
	var cnf wire.Confirmation
	leaf := night.http.Transport.(*http.Transport).TLSClientConfig.Certificates[0].Leaf
	sum := sha256.Sum256(leaf.Raw)
	if err := json.Unmarshal(claim(t, token, "cnf"), &cnf); err != nil || cnf.X5T != base64.RawURLEncoding.EncodeToString(sum[:]) {
		t.Errorf("cnf is %+v, %v; want that of night's certificate", cnf, err)
	}
}

// TestDelegationBetweenReplicas: a handle is good at every replica, and what has joined by it is dead everywhere with
// the delegator's task, whose shard has it all.
func TestDelegationBetweenReplicas(t *testing.T) {
	s := newSite(t, 4)
	a, b := s.start("a"), s.start("b")
	verifiers := map[string]*verify.Verifier{"a": a.verifierOf(0), "b": b.verifierOf(0)}
	for i := range workloads {
		delegator, delegate := workloadName(i), workloadName(i+1)
		first := a.here(delegator)
		second, peer := b.holder(delegate)
		root := first.begin()
		joined := second.join(first.delegate(root.Task.ID, delegate, "").Handle)
		token := joined.Tokens[0].AccessToken
		for name, v := range verifiers {
			if g, err := v.Verify(t.Context(), token, peer); err != nil || g.Workload != delegator || g.Client != delegate {
				t.Fatalf("a live token, by the verifier on %s: %+v, %v", name, g, err)
			}
		}
		if joined.Task.ID[4:6] != root.Task.ID[4:6] {
			t.Errorf("%s has joined in another shard than that of %s", joined.Task.ID, root.Task.ID)
		}
		if i%2 == 0 {
			first.end(root.Task.ID, "completed")
		} else if _, err := a.Broker().Revoke(t.Context(), broker.Revocation{Selector: broker.Selector{Subject: delegator}, Actor: "alice", Reason: "a test"}); err != nil {
			t.Fatal(err)
		}
		for name, v := range verifiers {
			a.eventually("the verifier on "+name+" refuses it", func() bool {
				_, err := v.Verify(t.Context(), token, peer)
				return errors.Is(err, verify.ErrRevoked)
			})
		}
		var grant wire.Grant
		if second.get("/v1/grants/"+joined.Tokens[0].GrantID).into(t, &grant); grant.Live {
			t.Error("the look-up calls it live")
		}
	}
}

// TestAdoptionBetweenReplicas: an earlier holder's end at another replica does nothing, until that replica cannot ask.
func TestAdoptionBetweenReplicas(t *testing.T) {
	s := newSite(t, 1)
	a, b := s.start("a"), s.start("b")
	first, second := a.here(reportID), b.here(reportID)
	begun, other := first.begin(), first.begin()
	as := func(c *caller, begun wire.BeginResponse, holder int) answer {
		return c.post(taskPath(begun.Task.ID, "/end"), fmt.Sprintf(`{"outcome":"completed","holder":%d,"end_key":%q}`, holder, begun.EndKey))
	}
	for _, task := range []wire.BeginResponse{begun, other} {
		if got := second.post(taskPath(task.Task.ID, "/adopt"), ""); got.status != http.StatusOK {
			t.Fatalf("adopt: %d %s", got.status, got.body)
		}
	}
	first.refused(as(first, begun, 1), http.StatusConflict, wire.ProblemAdopted)
	var pulses wire.HeartbeatResponse // by which a hears of one of them
	first.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q,"holder":1}]}`, begun.Task.ID)).into(t, &pulses)
	if pulses.Tasks[0].State != wire.StateAdopted {
		t.Errorf("pulses %+v", pulses)
	}
	a.redis.Set(redistest.Fault{Refuse: true})
	a.redis.Reset()
	if got := as(first, begun, 1); got.status != http.StatusConflict || got.name() != wire.ProblemAdopted {
		t.Errorf("an end of an earlier holder that it knows of: %d %s", got.status, got.body)
	}
	if got := as(first, other, 1); got.status != http.StatusAccepted {
		t.Errorf("one that it does not: %d %s", got.status, got.body)
	}
	a.redis.Set(redistest.Fault{})
	a.eventually("it is written, and holds", func() bool {
		var task wire.Task
		second.get(taskPath(other.Task.ID, "")).into(t, &task)
		return task.State == wire.StateCompleted
	})
	if got := as(second, begun, 2); got.status != http.StatusOK {
		t.Errorf("the holder's: %d %s", got.status, got.body)
	}
}
