package server_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/errandhq/errand/sdk/wire"
)

// What went wrong elsewhere, named by the first of the reports of its kind.

// What is good for one exchange was taken again: an assertion whose jti had been seen (Hydra, and CVE-2020-15222 of
// fosite), and an intent that somebody else repeated (CVE-2025-46815 of Zitadel). Here these are begins with an
// idempotency key, and handles of delegations: however often and by whom one is repeated, it is one task
// and one grant, of the one who was first, and none once that has ended.
func TestCVE_2020_5300(t *testing.T) {
	r := within(t, unhurried)
	report, night := r.client(reportID), r.client(nightID)
	begin := func(c *caller) answer { return c.send("POST", wire.PathTasks, beginBody, keyed("k1")) }
	t.Run("idempotency key", func(t *testing.T) {
		task := replayed(t, func() answer { return begin(report) }, "")
		if others := replayed(t, func() answer { return begin(night) }, ""); others == task {
			t.Error("somebody else's key has brought the task")
		}
		report.end(task, "completed")
		report.refused(begin(report), http.StatusGone, wire.ProblemTaskEnded)
	})
	t.Run("handle", func(t *testing.T) {
		root := report.begin().Task.ID
		handle := report.delegate(root, nightID, "").Handle
		report.refused(report.post(wire.PathJoins, joining(handle, "")), http.StatusForbidden, wire.ProblemNotDelegate)
		joined := replayed(t, func() answer { return night.post(wire.PathJoins, joining(handle, "")) }, wire.ProblemHandleUsed)
		night.end(joined, "completed")
		night.refused(night.post(wire.PathJoins, joining(handle, "")), http.StatusGone, wire.ProblemHandleUsed)
		unused := report.delegate(root, nightID, "").Handle
		report.end(root, "completed")
		night.refused(night.post(wire.PathJoins, joining(unused, "")), http.StatusGone, wire.ProblemTaskEnded)
	})
}

// replayed makes an exchange many times at once, and then once more, and returns the one task that came of it.
// Repetitions have the same task and grant, or are refused with 410 and a problem, if that is not "".
func replayed(t *testing.T, exchange func() answer, problem string) string {
	t.Helper()
	var mu sync.Mutex
	made := map[[2]string]bool{} // task and grant
	created := 0
	once := func() {
		a := exchange()
		mu.Lock()
		defer mu.Unlock()
		if a.status != http.StatusCreated {
			if a.status != http.StatusGone || a.name() != problem {
				t.Errorf("a repetition: %d %s", a.status, a.body)
			}
			return
		}
		var begun wire.BeginResponse
		a.into(t, &begun)
		if len(begun.Tokens) != 1 {
			t.Errorf("%d tokens", len(begun.Tokens))
			return
		}
		made[[2]string{begun.Task.ID, begun.Tokens[0].GrantID}] = true
		created++
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(once)
	}
	all.Wait()
	once()
	if want := map[bool]int{true: 21, false: 1}[problem == ""]; created != want || len(made) != 1 {
		t.Fatalf("%d of 21 were answered, with %v", created, made)
	}
	for one := range made {
		return one[0]
	}
	return ""
}
