package broker_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// refuseMany has a workload refused n times, by the same rule.
func (h *harness) refuseMany(w string, n int) {
	h.t.Helper()
	for range n {
		if _, err := h.tryBegin(w, func(r *broker.BeginRequest) { r.Ceiling.Scopes = broker.Scopes{"orders:write"} }); err == nil {
			h.t.Fatal("not refused")
		}
	}
}

// counted are the refusals in the audit log: with events of their own, and in others.
func (h *harness) counted(w string) (single, more int) {
	for _, e := range h.audit.of(broker.EventDenied) {
		if e.Workload == workload(w).ID.String() {
			single++
		}
	}
	for _, e := range h.audit.of(broker.EventDeniedMore) {
		if e.Workload == workload(w).ID.String() {
			more += e.Count
			if e.Count < 1 || e.First.After(e.Time) || e.Rule == "" || e.Reason == "" {
				h.t.Errorf("%+v", e)
			}
		}
	}
	return single, more
}

// TestRefusalsAreBounded: in a minute a workload that is refused has so many events of its own, and all
// beyond them are in one; each is counted once, and another workload's are its own.
func TestRefusalsAreBounded(t *testing.T) {
	inBubble(t, func(h *harness) {
		const most = 60
		h.refuseMany(report, most)
		h.refuseMany("nobody", most+7)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if single, more := h.counted(report); single != most || more != 0 {
			h.t.Errorf("%d and %d of %d", single, more, most)
		}
		if single, more := h.counted("nobody"); single != most || more != 7 {
			h.t.Errorf("a workload that nobody knows: %d and %d of %d", single, more, most+7)
		}
		h.refuseMany(report, most+1)
		h.refuseMany(night, 1)
		time.Sleep(30 * time.Second)
		h.refuseMany(report, 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		if single, more := h.counted(report); single != 2*most || more != 3 {
			h.t.Errorf("%d and %d of %d", single, more, 2*most+3)
		}
		events := h.audit.of(broker.EventDeniedMore)
		if last := events[len(events)-1]; len(events) != 2 || last.Time.Sub(last.First) != 30*time.Second {
			h.t.Errorf("got %+v", events)
		}
		if single, more := h.counted(night); single != 1 || more != 0 {
			h.t.Errorf("another workload: %d and %d of 1", single, more)
		}
	})
}

// TestRefusalsAreNotLost: what was counted is written when the broker stops, and what found no room
// while the log was broken is counted.
func TestRefusalsAreNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h, stop := startHarness(t, store, nil)
		h.refuseMany(report, 100)
		h.audit.break_(errors.New("disk full"))
		h.refuseMany(night, 70)
		time.Sleep(time.Second)
		h.audit.break_(nil)
		stop()
		for w, n := range map[string]int{report: 100, night: 70} {
			if single, more := h.counted(w); single+more != n {
				t.Errorf("%s: %d and %d of %d", w, single, more, n)
			}
		}
	})
}

// TestRefusalsUnderManyNames: whoever makes up names, as a federated trust domain can, neither fills the
// log nor hides who else was refused.
func TestRefusalsUnderManyNames(t *testing.T) {
	inBubble(t, func(h *harness) {
		const names, each, most = 10_500, 2, 600
		for n := range names {
			h.refuseMany(fmt.Sprintf("stranger/%d", n), each)
		}
		h.refuseMany(report, 1)
		if events := len(h.audit.of(broker.EventDenied)); events > most+1 {
			h.t.Errorf("%d events by themselves; at most %d were to be", events, most+1)
		}
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if single, more := h.counted(report); single != 1 || more != 0 {
			h.t.Errorf("%s, which is known: %d and %d of 1", report, single, more)
		}
		all := len(h.audit.of(broker.EventDenied)) - 1
		for _, e := range h.audit.of(broker.EventDeniedMore) {
			all += e.Count
		}
		if all != names*each {
			h.t.Errorf("%d of %d are in the log", all, names*each)
		}
	})
}

// TestRefusalsTakeNoRoomFromEnds: while the log is broken, those that are counted wait, however many
// workloads they are of, and what somebody has to answer for is in the log in the end.
func TestRefusalsTakeNoRoomFromEnds(t *testing.T) {
	inBubble(t, func(h *harness) {
		const names = 10_500
		task := h.begin(report, func(r *broker.BeginRequest) { r.Lease = broker.MaxLease }).Task
		h.audit.break_(errors.New("disk full"))
		for n := range names {
			h.refuseMany(fmt.Sprintf("stranger/%d", n), 1)
		}
		time.Sleep(65 * time.Second)
		synctest.Wait()
		h.end(report, task.ID)
		h.audit.break_(nil)
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if n := len(h.audit.of(broker.EventTaskEnded)); n != 1 {
			h.t.Errorf("%d ends are in the log", n)
		}
		all := len(h.audit.of(broker.EventDenied))
		for _, e := range h.audit.of(broker.EventDeniedMore) {
			all += e.Count
		}
		if all != names {
			h.t.Errorf("%d refusals of %d are in the log", all, names)
		}
	})
}
