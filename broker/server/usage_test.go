package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// lines are those of the audit log that have a kind.
func (r *replica) lines(kind string) []audit.Line {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []audit.Line
	for d := json.NewDecoder(strings.NewReader(string(text))); ; {
		var l audit.Line
		if err := d.Decode(&l); err == io.EOF {
			return out
		} else if err != nil {
			r.t.Fatal(err)
		}
		if l.Kind == kind {
			out = append(out, l)
		}
	}
}

// TestUsageComesToTheAuditLog: what a verifier did with a token, offline, is in the broker's log and
// metrics.
func TestUsageComesToTheAuditLog(t *testing.T) {
	r := start(t)
	v := r.verifier()
	c, peer := r.bearer(reportID)
	begun := c.begin()
	token := begun.Tokens[0]
	for range 2 {
		if _, err := v.Verify(t.Context(), token.AccessToken, peer, verify.Scope("orders:read")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Verify(t.Context(), token.AccessToken, peer, verify.Scope("orders:write")); err == nil {
		t.Fatal("a scope that was not granted")
	}
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	used := r.lines("grant.used")
	if len(used) != 1 {
		t.Fatalf("got %+v", used)
	}
	l := used[0]
	if l.Grant != token.GrantID || l.Audience != "orders" || l.Actor != ordersID || l.Usage == nil || l.Usage.Allowed != 2 || l.Usage.Refused != 1 ||
		fmt.Sprint(l.Usage.Scopes) != "[{orders:read 2 0} {orders:write 0 1}]" || l.Usage.First.IsZero() || l.Usage.Last.Before(l.Usage.First) {
		t.Errorf("got %+v", l)
	}
	response, err := http.Get("http://" + r.OpsAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`errand_token_checks_total{audience="orders",result="allowed"} 2`,
		`errand_token_checks_total{audience="orders",result="refused"} 1`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// TestUsageIsOfItsServersAlone, and has limits.
func TestUsageIsOfItsServersAlone(t *testing.T) {
	r := start(t)
	body := func(n int, padding string) string {
		now := time.Now().UTC().Format(time.RFC3339)
		var grants []string
		for i := range n {
			id := strings.NewReplacer("0", "a", "1", "b", "8", "c", "9", "d").Replace(fmt.Sprintf("%026d", i))
			grants = append(grants, fmt.Sprintf(`{"grant_id":"gnt_00%s","first_used_at":%q,"last_used_at":%q,"allowed":1,"refused":0%s}`, id, now, now, padding))
		}
		return `{"batch":"b","grants":[` + strings.Join(grants, ",") + `]}`
	}
	long := strings.Repeat(" ", 1100)
	for name, c := range map[string]struct {
		caller, audience, body string
		status                 int
		problem                string
	}{
		"a server":          {ordersID, "orders", body(1, ""), http.StatusNoContent, ""},
		"the most":          {ordersID, "orders", body(wire.MaxUsageGrants, ""), http.StatusNoContent, ""},
		"one more":          {ordersID, "orders", body(wire.MaxUsageGrants+1, ""), http.StatusUnprocessableEntity, wire.ProblemInvalid},
		"too large":         {ordersID, "orders", body(wire.MaxUsageGrants, long), http.StatusRequestEntityTooLarge, wire.ProblemTooLarge},
		"a workload":        {reportID, "orders", body(1, ""), http.StatusForbidden, wire.ProblemDenied},
		"another audience":  {ordersID, "files", body(1, ""), http.StatusForbidden, wire.ProblemDenied},
		"no such audience":  {ordersID, "nothing", body(1, ""), http.StatusForbidden, wire.ProblemDenied},
		"no audience":       {ordersID, "", body(1, ""), http.StatusForbidden, wire.ProblemDenied},
		"an unknown member": {ordersID, "orders", body(1, `,"path":"/orders/7"`), http.StatusBadRequest, wire.ProblemMalformed},
		"not an ID":         {ordersID, "orders", strings.Replace(body(1, ""), "gnt_", "tsk_", 1), http.StatusUnprocessableEntity, wire.ProblemInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.lines("grant.used"))
			a := r.client(c.caller).post(wire.PathFeedUsage+"?aud="+c.audience, c.body)
			if a.status != c.status || c.problem != "" && !strings.HasSuffix(a.problem.Type, "/problems/"+c.problem) {
				t.Errorf("got %d %s", a.status, a.body)
			}
			if c.status == http.StatusNoContent && len(a.body) != 0 {
				t.Errorf("a body: %s", a.body)
			}
			if after := len(r.lines("grant.used")); (after > before) != (c.status == http.StatusNoContent) {
				t.Errorf("%d lines before, %d after", before, after)
			}
		})
	}
}
