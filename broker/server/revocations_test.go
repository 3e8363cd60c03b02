package server_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// operate is a POST at the operator listener.
func (c *caller) operate(path, body string) answer {
	c.r.t.Helper()
	return c.send("POST", path, body, c.at("operator"))
}

// refusedOperator checks a refusal: its name and the member that is wrong.
func (c *caller) refusedOperator(path, body string, status int, name, field string) {
	c.r.t.Helper()
	if a := c.operate(path, body); a.status != status || a.name() != name || a.problem.Field != field || a.problem.Detail == "" {
		c.r.t.Errorf("%s: %d %s, want %d %s %s", body, a.status, a.body, status, name, field)
	}
}

// TestRevocationByPlan: plan, apply, record; verifiers hear of it, and a second look finds it.
func TestRevocationByPlan(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	operator, report, night, orders := r.client(operatorID), r.client(reportID), r.client("spiffe://prod/night"), r.client(ordersID)
	begun := report.begin()
	spared := night.begin()
	selector := `{"workload":["` + reportID + `"],"audience":["orders"]}`
	a := operator.operate(wire.PathRevocations, `{"dry_run":true,"selector":`+selector+`}`)
	var plan wire.RevocationPlan
	a.into(t, &plan)
	if a.status != 200 || !strings.HasPrefix(plan.Plan, "pln_") || plan.Grants != 1 || plan.Tasks != 1 || plan.Entries != 1 || !plan.Complete || plan.What != wire.WhatGrants ||
		plan.Sample[0].ID != begun.Tokens[0].GrantID || plan.Owners[0] != (wire.Counted{Name: "team-fin", Grants: 1}) || plan.ExpiresIn != 300 || a.header.Get("Location") != "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	a = operator.operate(wire.PathRevocations, fmt.Sprintf(`{"plan":%q,"reason":"INC-4411: a leaked log","ticket":"INC-4411","wait_seconds":1}`, plan.Plan))
	var done wire.Revocation
	a.into(t, &done)
	if a.status != 200 || !done.Durable || done.Left != "" || *done.Grants != 1 || done.Entries != 1 || done.Feed == "" || done.Actor != operatorID ||
		done.Propagation == nil || a.header.Get("Location") != wire.PathRevocations+"/"+done.ID {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var dead, alive wire.Grant
	report.get(wire.PathGrants+"/"+begun.Tokens[0].GrantID).into(t, &dead)
	night.get(wire.PathGrants+"/"+spared.Tokens[0].GrantID).into(t, &alive)
	if dead.Live || !alive.Live {
		t.Errorf("%+v, %+v", dead, alive)
	}
	r.eventually("the denial is on the feed", func() bool {
		return strings.Contains(string(orders.get(wire.PathFeedSnapshot+"?aud=orders").body), reportID)
	})
	var found wire.Revocation
	operator.lookInto(&found, wire.PathRevocations+"/"+done.ID, nil)
	var all wire.RevocationList
	operator.lookInto(&all, wire.PathRevocations, url.Values{"page_size": {"1"}})
	if found.Reason != "INC-4411: a leaked log" || found.Event != done.Event || len(all.Items) != 1 || all.Items[0].ID != done.ID || all.NextCursor != "" {
		t.Errorf("%+v\n%+v", found, all)
	}
	for _, want := range []string{`"kind":"revocation.applied"`, `"revocation":"` + done.ID + `"`, `"applied":{"selector":"workload=` + reportID + `\u0026audience=orders","what":"grants","counted":1,`, `"ticket":"INC-4411"`} {
		if !strings.Contains(r.auditLog(), want) {
			t.Errorf("the audit log lacks %s:\n%s", want, r.auditLog())
		}
	}
}

// TestRevocationsRefuse: what is refused changes nothing (285, 286, 287, 288 of the bad input).
func TestRevocationsRefuse(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	operator, report := r.client(operatorID), r.client(reportID)
	begun := report.begin()
	const because = `"reason":"a test of refusals"`
	for _, test := range []struct {
		body   string
		status int
		name   string
		field  string
	}{
		{`{"selector":{},` + because + `}`, 422, wire.ProblemInvalid, "selector"},
		{`{` + because + `}`, 422, wire.ProblemInvalid, "selector"},
		{`{"selector":{"all":true},` + because + `}`, 403, wire.ProblemRoleRequired, ""},
		{`{"selector":{"audience":["orders"]}}`, 422, wire.ProblemInvalid, "reason"},
		{`{"selector":{"audience":["orders"]},"reason":"too short"}`, 422, wire.ProblemInvalid, "reason"},
		{`{"selector":{"audience":["orders"]},"max_affected":0,` + because + `}`, 409, wire.ProblemPlanChanged, ""},
		{`{"selector":{"workload":["spiffe://prod/(a+)+$"]},` + because + `}`, 422, wire.ProblemInvalid, "selector.workload"},
		{`{"selector":{"workload":["*"]},` + because + `}`, 422, wire.ProblemInvalid, "selector.workload"},
		{`{"selector":{"ref":"job"},` + because + `}`, 422, wire.ProblemInvalid, "selector.ref"},
		{`{"selector":{"workloads":["x"]},` + because + `}`, 400, wire.ProblemMalformed, ""},
		{`{"selector":{"audience":["orders"]},"what":"all",` + because + `}`, 422, wire.ProblemInvalid, "what"},
		{`{"selector":{"audience":["orders"]},"plan":"pln_x",` + because + `}`, 422, wire.ProblemInvalid, "plan"},
		{`{"plan":"pln_x",` + because + `}`, 422, wire.ProblemInvalid, "plan"},
		{`{"plan":"pln_x","dry_run":true}`, 422, wire.ProblemInvalid, "plan"},
		{`{"selector":{"task":["` + string(broker.NewTaskID(0)) + `"]},` + because + `}`, 404, wire.ProblemNotFound, ""},
		{`{"selector":{"audience":["orders"]},"wait_seconds":31,` + because + `}`, 422, wire.ProblemInvalid, "wait_seconds"},
	} {
		operator.refusedOperator(wire.PathRevocations, test.body, test.status, test.name, test.field)
	}
	operator.refusedOperator(taskPath(begun.Task.ID, "/revoke"), `{}`, 422, wire.ProblemInvalid, "reason")
	misspelt := `"selector":{"workload":["` + reportID + `x","` + reportID + `"],"audience":["ordres"]}`
	for path, body := range map[string]string{
		wire.PathRevocations:        `{"dry_run":true,` + misspelt + `}`,
		wire.PathRevocations + "?1": `{` + misspelt + `,` + because + `}`,
		wire.PathLocks:              `{"expires_in":1,` + misspelt + `,` + because + `}`,
	} {
		var answer struct {
			Unknown []string `json:"unknown"`
		}
		if operator.operate(strings.TrimSuffix(path, "?1"), body).into(t, &answer); !slices.Equal(answer.Unknown, []string{"workload=" + reportID + "x", "audience=ordres"}) {
			t.Errorf("%s: unknown are %q", body, answer.Unknown)
		}
	}
	var grant wire.Grant
	if report.get(wire.PathGrants+"/"+begun.Tokens[0].GrantID).into(t, &grant); !grant.Live {
		t.Error("something has happened")
	}
	if a := operator.operate(wire.PathGrants+"/"+begun.Tokens[0].GrantID+"/revoke", `{`+because+`}`); a.status != 200 || a.header.Get("Location") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if report.get(wire.PathGrants+"/"+begun.Tokens[0].GrantID).into(t, &grant); grant.Live || grant.TaskState != wire.StateActive {
		t.Errorf("%+v", grant)
	}
	a := operator.operate(taskPath(begun.Task.ID, "/revoke"), `{`+because+`}`)
	var done wire.Revocation
	if a.into(t, &done); a.status != 200 || done.Tasks != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	var task wire.Task
	if report.get(taskPath(begun.Task.ID, "")).into(t, &task); task.State != wire.StateRevoked || task.Cause != "operator" {
		t.Errorf("%+v", task)
	}
}

// unrevoking is a store that takes locks, and goes away before a selector.
type unrevoking struct{ broker.Store }

func (s unrevoking) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if ends[0].Kind == broker.TargetSelector {
		return nil, broker.ErrUnavailable
	}
	return s.Store.End(ctx, ends)
}

// TestLockWithoutItsRevocation: what has happened, and what has not, are both in the answer.
func TestLockWithoutItsRevocation(t *testing.T) {
	r := startFederated(t, nil, withOperators, func(c *server.Config) { c.Store = unrevoking{c.Store} })
	operator, report := r.client(operatorID), r.client(reportID)
	a := operator.operate(wire.PathLocks, `{"selector":{"workload":["`+reportID+`"]},"revoke":true,"reason":"INC-4411: a stolen key","expires_in":3600}`)
	var done wire.LockResponse
	if a.into(t, &done); a.status != http.StatusAccepted || len(done.Locks) != 1 || done.Left == "" || done.Revocation != nil {
		t.Errorf("%d %s", a.status, a.body)
	}
	report.refused(report.post(wire.PathTasks, beginBody), 403, wire.ProblemQuarantined)
}

// TestLocks: locked and revoked in one request, listed, told to whoever meets it, and lifted.
func TestLocks(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	operator, report := r.client(operatorID), r.client(reportID)
	begun := report.begin()
	body := `{"selector":{"workload":["` + reportID + `"]},"revoke":true,"reason":"INC-4411: a stolen key","expires_in":3600}`
	a := operator.operate(wire.PathLocks, body)
	var done wire.LockResponse
	a.into(t, &done)
	if a.status != http.StatusCreated || len(done.Locks) != 1 || done.Locks[0].Subject != reportID || done.Locks[0].Actor != operatorID || done.Locks[0].Stood || done.Revocation == nil || done.Revocation.Entries != 1 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	report.refused(report.post(wire.PathTasks, beginBody), 403, wire.ProblemQuarantined)
	var grant wire.Grant
	if report.get(wire.PathGrants+"/"+begun.Tokens[0].GrantID).into(t, &grant); grant.Live {
		t.Error("its token is still good")
	}
	a = operator.operate(wire.PathLocks, body)
	var again wire.LockResponse
	if a.into(t, &again); a.status != 200 || !again.Locks[0].Stood || again.Locks[0].ID != done.Locks[0].ID {
		t.Errorf("%d %s", a.status, a.body)
	}
	var task wire.Task
	if report.get(wire.PathTasks+"/"+begun.Task.ID).into(t, &task); task.State != wire.StateActive {
		t.Errorf("the task is %s after its tokens were revoked; it goes on", task.State)
	}
	a = operator.operate(wire.PathLocks, strings.Replace(body, `"revoke":true`, `"end_tasks":true`, 1))
	if a.into(t, &again); a.status != 200 || !again.Locks[0].Stood || again.Revocation == nil || again.Revocation.What != wire.WhatTasks || again.Revocation.Tasks != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if report.get(wire.PathTasks+"/"+begun.Task.ID).into(t, &task); task.State != wire.StateRevoked {
		t.Errorf("the task is %s after it was ended", task.State)
	}
	path := wire.PathLocks + "/" + done.Locks[0].ID
	var list wire.LockList
	operator.lookInto(&list, wire.PathLocks, nil)
	var one wire.OperatorLock
	operator.lookInto(&one, path, nil)
	if len(list.Locks) != 1 || list.Locks[0] != one || one.Reason != "INC-4411: a stolen key" {
		t.Errorf("%+v, %+v", list, one)
	}
	for _, bad := range []string{path, path + "?reason=", path + "?why=over"} {
		if a := operator.send("DELETE", bad, "", operator.at("operator")); a.status != 422 && a.status != 400 {
			t.Errorf("%s: %d %s", bad, a.status, a.body)
		}
	}
	for range 2 { // twice is as once
		if a := operator.send("DELETE", path+"?reason=it+is+over", "", operator.at("operator")); a.status != http.StatusNoContent || len(a.body) != 0 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := operator.look(path, nil); a.status != 404 {
		t.Errorf("%d %s", a.status, a.body)
	}
	report.begin()
	for body, field := range map[string]string{
		`{"selector":{"audience":["orders"]},"reason":"a test of locks"}`:                                  "expires_in",
		`{"selector":{"audience":["orders"]},"reason":"a test of locks","expires_in":-1}`:                  "expires_in",
		`{"selector":{"audience":["orders"]},"reason":"a test of locks","expires_in":9223372036854775807}`: "expires_in",
		`{"selector":{"audience":["orders"]},"reason":"short","expires_in":60}`:                            "reason",
		`{"selector":{},"reason":"a test of locks","expires_in":60}`:                                       "selector",
		`{"selector":{"task":["` + begun.Task.ID + `"]},"reason":"a test of locks","expires_in":60}`:       "selector",
	} {
		operator.refusedOperator(wire.PathLocks, body, 422, wire.ProblemInvalid, field)
	}
	operator.refusedOperator(wire.PathLocks, `{"selector":{"all":true},"reason":"a test of locks","expires_in":60}`, 403, wire.ProblemRoleRequired, "")
}
