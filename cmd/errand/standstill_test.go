package main

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// TestP3_ReplicasThatStandStill stops a replica for longer than a lease, and kills both: what has ended
// meanwhile is over for each that comes back, from its first answer on, and what goes on goes on.
func TestP3_ReplicasThatStandStill(t *testing.T) {
	e := startExample(t)
	a, b := e.workload("A_WORKLOAD"), e.workload("B_WORKLOAD")
	long := make([]wire.BeginResponse, 10)
	for i := range long {
		long[i] = a.mustBegin(t, 600)
	}
	kept, brief := a.mustBegin(t, 600), a.mustBegin(t, 5)

	e.signal("a", syscall.SIGSTOP)
	for _, begun := range long {
		if status, err := b.end(begun); err != nil || status != http.StatusOK {
			t.Fatalf("end at the other replica: %d, %v", status, err)
		}
	}
	soon(t, 30*time.Second, "the lease runs out at the other replica", func() bool {
		live, err := b.live(brief.Tokens[0].GrantID)
		return err == nil && !live
	})
	e.signal("a", syscall.SIGCONT)
	over := append(long, brief)
	e.over(a, over)
	var pulses wire.HeartbeatResponse
	soon(t, 30*time.Second, "a heartbeat is answered", func() bool {
		_, err := a.call("POST", wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q},{"id":%q}]}`, brief.Task.ID, kept.Task.ID), &pulses)
		return err == nil
	})
	if pulses.Tasks[0].State != wire.StateLapsed || pulses.Tasks[1].State != wire.StateActive {
		t.Errorf("the pulses are %+v", pulses)
	}
	soon(t, 30*time.Second, "the replica that stood still issues", func() bool { _, err := a.begin(); return err == nil })

	e.signal("a", syscall.SIGKILL)
	e.signal("b", syscall.SIGKILL)
	e.again()
	e.over(a, over)
	if live, err := a.live(kept.Tokens[0].GrantID); err != nil || !live {
		t.Errorf("a task that nobody has ended: live %t, %v", live, err)
	}
	if status, err := a.end(kept); err != nil || status != http.StatusOK {
		t.Errorf("its end, with its end key of before: %d, %v", status, err)
	}
	e.over(a, []wire.BeginResponse{kept})
}

func (w workload) mustBegin(t *testing.T, lease int) (b wire.BeginResponse) {
	t.Helper()
	if _, err := w.call("POST", wire.PathTasks, fmt.Sprintf(`{"name":"monthly-export","purpose":"try standing still","lease_seconds":%d,"tokens":[{"audience":"orders"}]}`, lease), &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (e *example) signal(name string, s syscall.Signal) {
	e.t.Helper()
	if err := syscall.Kill(e.pid(name), s); err != nil {
		e.t.Fatal(err)
	}
}

// over wants that no answer says that one of the grants is live, and one answer about each.
func (e *example) over(at workload, tasks []wire.BeginResponse) {
	e.t.Helper()
	for _, task := range tasks {
		soon(e.t, 30*time.Second, "a look-up is answered", func() bool {
			live, err := at.live(task.Tokens[0].GrantID)
			if err == nil && live {
				e.t.Fatalf("%s was over, and its grant is live again", task.Task.ID)
			}
			return err == nil
		})
	}
}

// again starts the replicas anew that were killed, as the example's README says.
func (e *example) again() {
	e.t.Helper()
	for _, replica := range []string{"a", "b"} {
		soon(e.t, 10*time.Second, replica+" is gone", func() bool { return syscall.Kill(e.pid(replica), 0) == syscall.ESRCH })
	}
	e.signal("run", syscall.SIGUSR1)
	soon(e.t, 30*time.Second, "the replicas are there again", func() bool { return isReady(e.at["A_OPS_PORT"]) && isReady(e.at["B_OPS_PORT"]) })
}
