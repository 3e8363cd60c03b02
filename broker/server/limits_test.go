package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// within starts a replica with limits of its own.
func within(t *testing.T, l httpapi.Limits, edits ...func(*server.Config)) *replica {
	t.Helper()
	return startFederated(t, nil, append(edits, func(c *server.Config) { c.Limits = l })...)
}

// retryAfter is what an answer tells to wait.
func retryAfter(t *testing.T, a answer) time.Duration {
	t.Helper()
	n, err := strconv.Atoi(a.header.Get("Retry-After"))
	if err != nil || n < 1 {
		t.Fatalf("%d with Retry-After %q: %s", a.status, a.header.Get("Retry-After"), a.body)
	}
	return time.Duration(n) * time.Second
}

// metric is a sample of /metrics.
func (r *replica) metric(name string) string {
	r.t.Helper()
	resp, err := http.Get("http://" + r.OpsAddr() + "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestRateOfIssuing: a workload's burst is taken and one more is refused, whatever it is for; what it
// has begun it can keep alive, read and end all the same, and other workloads notice nothing. After
// Retry-After the next one is taken.
func TestRateOfIssuing(t *testing.T) {
	const burst = 6
	at := time.Now()
	var ahead atomic.Int64
	r := within(t, httpapi.Limits{IssueRate: 1, IssueBurst: burst}, func(c *server.Config) {
		c.Now = func() time.Time { return at.Add(time.Duration(ahead.Load())) }
	})
	c, night := r.client(reportID), r.client("spiffe://prod/night")
	begun := c.begin()
	for i := range burst - 1 {
		// A request that is refused for another reason counts as well: it makes as much work.
		body, want := `{"audience":"orders"}`, http.StatusOK
		if i%2 == 1 {
			body, want = `{"audience":"payroll"}`, http.StatusForbidden
		}
		if a := c.post(taskPath(begun.Task.ID, "/tokens"), body); a.status != want {
			t.Fatalf("request %d of a burst of %d: %d %s", i+2, burst, a.status, a.body)
		}
	}
	for _, a := range []answer{c.post(wire.PathTasks, beginBody), c.post(taskPath(begun.Task.ID, "/tokens"), `{"audience":"orders"}`), c.post(wire.PathTasks, "{")} {
		c.refused(a, http.StatusTooManyRequests, wire.ProblemRateLimited)
		if wait := retryAfter(t, a); wait != time.Second {
			t.Errorf("to wait %s at one a second", wait)
		}
	}
	if got := r.metric(`errand_rate_limited_total{kind="issue"}`); got != "3" {
		t.Errorf("%s were counted", got)
	}
	if a := night.post(wire.PathTasks, beginBody); a.status != http.StatusCreated {
		t.Errorf("another workload: %d %s", a.status, a.body)
	}
	if a := c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, begun.Task.ID)); a.status != http.StatusOK || !strings.Contains(string(a.body), `"active"`) {
		t.Errorf("a heartbeat: %d %s", a.status, a.body)
	}
	if a := c.end(begun.Task.ID, "completed"); a.status != http.StatusOK {
		t.Errorf("an end: %d %s", a.status, a.body)
	}
	ahead.Store(int64(time.Second))
	c.begin()
	c.refused(c.post(wire.PathTasks, beginBody), http.StatusTooManyRequests, wire.ProblemRateLimited)
}

// TestRateOfOthers: ends, heartbeats and reads have a rate as well. It is told before the body is read.
func TestRateOfOthers(t *testing.T) {
	at := time.Now()
	r := within(t, httpapi.Limits{Rate: 2, Burst: 4}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c := r.client(reportID)
	begun := c.begin()
	for i, a := range []answer{c.get(wire.PathWhoami), c.get(taskPath(begun.Task.ID, "")), c.get("/nowhere"), c.post(wire.PathHeartbeats, "{")} {
		if a.status == http.StatusTooManyRequests {
			t.Fatalf("request %d: %s", i, a.body)
		}
	}
	for _, a := range []answer{c.get(wire.PathWhoami), c.get("/nowhere"), c.post(wire.PathHeartbeats, "{"), c.end(begun.Task.ID, "completed"),
		c.post(wire.PathHeartbeats, strings.Repeat(" ", httpapi.MaxBody+1))} {
		if a.status != http.StatusTooManyRequests || a.name() != wire.ProblemRateLimited || retryAfter(t, a) != time.Second {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	c.begin() // this has a rate of its own
}

// TestRateOfHeartbeats: one for many tasks counts as many requests, so that nobody keeps the store busy for
// all others with what looks like few.
func TestRateOfHeartbeats(t *testing.T) {
	at := time.Now()
	const n = 1000 // tasks, like 50 requests more
	r := within(t, httpapi.Limits{Rate: 10, Burst: 2*n/httpapi.BeatsPerRequest + 10}, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c := r.client(reportID)
	begun := c.begin()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf(`{"id":"tsk_00%026d"}`, i)
	}
	many, one := `{"tasks":[`+strings.Join(ids, ",")+`]}`, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, begun.Task.ID)
	for range 2 {
		if a := c.post(wire.PathHeartbeats, many); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := c.post(wire.PathHeartbeats, many)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemRateLimited)
	if wait := retryAfter(t, a); wait < 4*time.Second || wait > 5*time.Second {
		t.Errorf("to wait %s for 50 at 10 a second, with some left", wait)
	}
	if a := c.post(wire.PathHeartbeats, one); a.status != http.StatusOK {
		t.Errorf("a small one: %d %s", a.status, a.body)
	}
	for _, burst := range []int{1, 3} {
		r := within(t, httpapi.Limits{Rate: 1, Burst: burst})
		if a := r.client(reportID).post(wire.PathHeartbeats, many); a.status != http.StatusOK {
			t.Errorf("with a burst of %d it is never taken: %d %s", burst, a.status, a.body)
		}
	}
}

// TestQuotas: as many tasks and grants as a registration says may be live, one more is refused with
// what to do about it, and when one has ended there is room again.
func TestQuotas(t *testing.T) {
	r := start(t)
	const small = "spiffe://prod/small" // max_tasks 2, max_grants 3
	c := r.client(small)
	first := c.beginAs(`{"name":"n","purpose":"p"}`)
	c.beginAs(`{"name":"n","purpose":"p"}`)
	a := c.post(wire.PathTasks, `{"name":"n","purpose":"p"}`)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemQuota)
	if retryAfter(t, a); !strings.Contains(a.problem.Detail, "at most 2 live tasks") {
		t.Errorf("it says %q", a.problem.Detail)
	}
	for range 3 {
		if a := c.post(taskPath(first.Task.ID, "/tokens"), `{"audience":"orders"}`); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a = c.post(taskPath(first.Task.ID, "/tokens"), `{"audience":"orders"}`)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemQuota)
	if retryAfter(t, a); !strings.Contains(a.problem.Detail, "at most 3 live grants") {
		t.Errorf("it says %q", a.problem.Detail)
	}
	if a := c.end(first.Task.ID, "completed"); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	third := c.beginAs(`{"name":"n","purpose":"p"}`)
	// Grants count until they expire, whatever becomes of their task, and the answer says so.
	a = c.post(taskPath(third.Task.ID, "/tokens"), `{"audience":"orders"}`)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemQuota)
	if !strings.Contains(a.problem.Detail, "until its token has expired") {
		t.Errorf("it says %q", a.problem.Detail)
	}
}

// TestIssuingStuckLeavesEndsAlone: with the store's writes of grants stuck, and more callers than there
// are places, ends are answered as ever, heartbeats go through, and a verifier hears of the ends.
func TestIssuingStuckLeavesEndsAlone(t *testing.T) {
	const places = 8
	stuck := &stuckStore{}
	r := within(t, httpapi.Limits{Issuing: places}, func(c *server.Config) { stuck.Store = c.Store; c.Store = stuck })
	v := r.verifier()
	c, peer := r.bearer(reportID)
	var begun []wire.BeginResponse
	for range 20 {
		begun = append(begun, c.beginAs(`{"name":"export","purpose":"FIN-212","lease_seconds":600,"tokens":[{"audience":"orders"}]}`))
	}
	stuck.stuck.Store(true)
	flooder := r.client(reportID)
	flooder.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 6 * places
	var flood sync.WaitGroup
	stop := make(chan struct{})
	var overloaded, through atomic.Int32
	for range 6 * places {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				time.Sleep(50 * time.Millisecond) // the places are what is short here, and not the processor
				switch a, err := flooder.try("POST", wire.PathTasks, beginBody, nil); {
				case err != nil: // a connection of so many was lost on a busy machine
				case a.status == http.StatusServiceUnavailable && strings.Contains(string(a.body), "/"+wire.ProblemOverloaded):
					retryAfter(t, a)
					overloaded.Add(1)
				case a.status == http.StatusServiceUnavailable && strings.Contains(string(a.body), "/"+wire.ProblemStoreUnavailable):
					// the store has not answered in time
				default:
					through.Add(1)
				}
			}
		})
	}
	r.eventually("the replica is overloaded", func() bool { return overloaded.Load() > 0 })
	if got := r.metric(`errand_requests_at_work{kind="issue"}`); got == "" || got == "0" {
		t.Errorf("%q issuing requests at work", got)
	}
	for _, b := range begun {
		began := time.Now()
		if a := c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, b.Task.ID)); a.status != http.StatusOK || !strings.Contains(string(a.body), `"active"`) {
			t.Errorf("a heartbeat: %d %s", a.status, a.body)
		}
		if a := c.end(b.Task.ID, "completed"); a.status != http.StatusOK {
			t.Errorf("an end: %d %s", a.status, a.body)
		}
		if took := time.Since(began); took > busy(time.Second) {
			t.Errorf("a heartbeat and an end took %s", took)
		}
		r.eventually("the verifier has heard", func() bool {
			_, err := v.Verify(t.Context(), b.Tokens[0].AccessToken, peer)
			return err != nil
		})
		if took := time.Since(began); took > busy(2*time.Second) {
			t.Errorf("the token was refused after %s", took)
		}
	}
	close(stop)
	flood.Wait()
	if through.Load() > 0 {
		t.Errorf("%d requests got something else than 503", through.Load())
	}
	stuck.stuck.Store(false)
	c.begin()
}

// stuckStore answers no write of grants, until its caller has no more time.
type stuckStore struct {
	broker.Store
	stuck atomic.Bool
}

func (s *stuckStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	if s.stuck.Load() {
		<-ctx.Done()
		return broker.GrantReply{}, broker.ErrUnconfirmed
	}
	return s.Store.Grant(ctx, r)
}

// slowReport sends the head of a report of usage of the audience orders, and no body. It returns the status of the answer, or
// zero when there is none within the time.
func (r *replica) slowReport(id string, within time.Duration) (net.Conn, int) {
	r.t.Helper()
	c := tls.Client(r.dial("127.0.0.1"), r.clientTLS(id))
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "POST %s?aud=orders HTTP/1.1\r\nHost: errand\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", wire.PathFeedUsage, wire.MaxUsageBytes); err != nil {
		r.t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return c, 0
	}
	return c, resp.StatusCode
}

// TestUsageReportsAreFew: nothing is read of a report from who is no server of the audience; of those that
// are there few are in memory at once, and those that are slow leave all else alone.
func TestUsageReportsAreFew(t *testing.T) {
	r := start(t)
	if _, status := r.slowReport(reportID, 5*time.Second); status != http.StatusForbidden {
		t.Errorf("somebody who is no server, before its body: %d", status)
	}
	var slow []net.Conn
	for i := range 8 {
		c, status := r.slowReport(ordersID, 100*time.Millisecond)
		if slow = append(slow, c); status != 0 {
			t.Fatalf("slow report %d: %d", i, status)
		}
	}
	if _, status := r.slowReport(ordersID, 5*time.Second); status != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", status)
	}
	orders, report := r.client(ordersID), `{"batch":"b","lost":1}`
	if a := orders.post(wire.PathFeedUsage+"?aud=orders", report); a.status != http.StatusServiceUnavailable || a.name() != wire.ProblemOverloaded || retryAfter(t, a) != time.Second {
		t.Errorf("a quick one meanwhile: %d %s", a.status, a.body)
	}
	if a := r.client("spiffe://prod/files").post(wire.PathFeedUsage+"?aud=files", report); a.status != http.StatusNoContent {
		t.Errorf("another server's: %d %s", a.status, a.body)
	}
	c := r.client(reportID)
	if a := c.end(c.begin().Task.ID, "completed"); a.status != http.StatusOK {
		t.Errorf("an end: %d %s", a.status, a.body)
	}
	for _, c := range slow {
		c.Close()
	}
	r.eventually("there is room again", func() bool {
		return orders.post(wire.PathFeedUsage+"?aud=orders", report).status == http.StatusNoContent
	})
}

// TestRateOfUsageReports: they have a rate of their own, far below that of what is small.
func TestRateOfUsageReports(t *testing.T) {
	at := time.Now()
	r := startFederated(t, nil, func(c *server.Config) { c.Now = func() time.Time { return at } })
	c := r.client(ordersID)
	for i := range httpapi.UsageBurst {
		if a := c.post(wire.PathFeedUsage+"?aud=orders", fmt.Sprintf(`{"batch":"b%d","lost":1}`, i)); a.status != http.StatusNoContent {
			t.Fatalf("report %d: %d %s", i, a.status, a.body)
		}
	}
	a := c.post(wire.PathFeedUsage+"?aud=orders", `{"batch":"more","lost":1}`)
	c.refused(a, http.StatusTooManyRequests, wire.ProblemRateLimited)
	if retryAfter(t, a) != time.Second || r.metric(`errand_rate_limited_total{kind="usage"}`) != "1" {
		t.Errorf("%v", a.header)
	}
	if a := c.get(wire.PathFeedSnapshot + "?aud=orders"); a.status != http.StatusOK {
		t.Errorf("its feed: %d %s", a.status, a.body)
	}
}
