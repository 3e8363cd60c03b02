package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

const filesID = "spiffe://prod/files"

// verifierOf starts a verifier of an audience's server.
func (r *replica) verifierOf(id, audience string, edit func(*verify.Config)) *verify.Verifier {
	r.t.Helper()
	c := verify.Config{
		Issuer: r.Issuer(), Audience: audience, Logger: r.logger(),
		TLS: &tls.Config{RootCAs: r.roots(), Certificates: []tls.Certificate{r.certificate(id)}},
	}
	if edit != nil {
		edit(&c)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := verify.New(ctx, c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = v.Close() })
	return v
}

// gate lets nothing more through to a caller once it is shut.
type gate struct {
	http.ResponseWriter
	shut func() bool
}

func (g gate) Unwrap() http.ResponseWriter { return g.ResponseWriter }

func (g gate) Write(p []byte) (int, error) {
	if g.shut() {
		panic(http.ErrAbortHandler)
	}
	return g.ResponseWriter.Write(p)
}

// endWaiting ends a task over HTTP and waits for verifiers.
func (c *caller) endWaiting(id string, seconds int) wire.Receipt {
	c.r.t.Helper()
	a := c.post(taskPath(id, "/end"), fmt.Sprintf(`{"outcome":"completed","wait_seconds":%d}`, seconds))
	if a.status != http.StatusOK {
		c.r.t.Fatalf("end: %d %s", a.status, a.body)
	}
	var out wire.Receipt
	a.into(c.r.t, &out)
	if out.Propagation == nil {
		c.r.t.Fatalf("nothing is said of verifiers: %s", a.body)
	}
	return out
}

// TestP2EndWaitsForVerifiers: of the audiences of the task, all confirm; one that has lost the broker is named with the moment
// from which it refuses by itself, and by then it does.
func TestP2EndWaitsForVerifiers(t *testing.T) {
	var cut atomic.Bool // from the server of files
	r := startFederated(t, nil, func(c *server.Config) {
		c.Around = func(name string, h http.Handler) http.Handler {
			if name != "workload" {
				return h
			}
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				g := gate{w, func() bool { return cut.Load() && req.TLS.PeerCertificates[0].URIs[0].String() == filesID }}
				if g.shut() {
					panic(http.ErrAbortHandler)
				}
				h.ServeHTTP(g, req)
			})
		}
	})
	r.verifierOf(ordersID, "orders", nil)
	r.verifierOf(ordersID, "orders", nil)
	lost := r.verifierOf(filesID, "files", func(c *verify.Config) {
		c.MaxStale, c.Binding = verify.MinMaxStale, verify.Unbound
	})
	r.eventually("all are known", func() bool { return r.Broker().KnownVerifiers() == 3 })
	c := r.client(reportID)
	both := `{"name":"export","purpose":"FIN-212","tokens":[{"audience":"orders"},{"audience":"files"}]}`
	first := c.beginAs(both)
	if p := c.endWaiting(first.Task.ID, 30).Propagation; p.Confirmed != 3 || len(p.Pending) != 0 {
		t.Errorf("got %+v", p)
	}
	if p := c.endWaiting(first.Task.ID, 30).Propagation; p.Confirmed != 3 || len(p.Pending) != 0 {
		t.Errorf("the repeat: %+v", p)
	}
	if p := c.endWaiting(c.begin().Task.ID, 30).Propagation; p.Confirmed != 2 || len(p.Pending) != 0 {
		t.Errorf("of one audience: %+v", p)
	}

	second := c.beginAs(both)
	token := second.Tokens[1].AccessToken
	if _, err := lost.Verify(t.Context(), token, nil); err != nil {
		t.Fatalf("before its end: %v", err)
	}
	cut.Store(true)
	began := time.Now()
	p := c.endWaiting(second.Task.ID, 1).Propagation
	if p.Confirmed != 2 || len(p.Pending) != 1 || p.Pending[0].ID != lost.Status().ID || p.Pending[0].Audience != "files" || p.Pending[0].Workload != filesID {
		t.Fatalf("got %+v", p)
	}
	at := p.Pending[0].RefusesAt
	if d := at.Sub(began); d < 2*time.Second || d > 3*time.Second+30*time.Second {
		t.Errorf("it refuses after %s", d)
	}
	time.Sleep(time.Until(at))
	if _, err := lost.Verify(t.Context(), token, nil); err == nil {
		t.Errorf("P2: it accepts what has ended, at the moment from which it refuses")
	}
}

// TestAcknowledgementsAttacked by whoever may send some, and by whoever may not.
func TestAcknowledgementsAttacked(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	c := r.client(ordersID)
	var at wire.FeedSnapshot
	c.get(wire.PathFeedSnapshot+"?aud=orders").into(t, &at)
	good := fmt.Sprintf(`{"id":"a","position":%q,"max_stale":10}`, at.Position)
	epoch, _, _ := strings.Cut(at.Position, ".")
	for name, one := range map[string]struct {
		id, audience, body string
		status             int
		problem            string
	}{
		"good":                {ordersID, "orders", good, 204, ""},
		"another's audience":  {ordersID, "files", good, 403, wire.ProblemDenied},
		"no such audience":    {ordersID, "nowhere", good, 403, wire.ProblemDenied},
		"no audience":         {ordersID, "", good, 403, wire.ProblemDenied},
		"a workload":          {reportID, "orders", good, 403, wire.ProblemDenied},
		"a stranger":          {nobodyID, "orders", good, 403, wire.ProblemDenied},
		"another epoch":       {ordersID, "orders", `{"id":"a","position":"7.0","max_stale":10}`, 410, wire.ProblemCursorExpired},
		"another shard count": {ordersID, "orders", fmt.Sprintf(`{"id":"a","position":"%s.0"}`, at.Position), 410, wire.ProblemCursorExpired},
		"an absurd position":  {ordersID, "orders", fmt.Sprintf(`{"id":"a","position":"%s.18446744073709551615"}`, epoch), 503, wire.ProblemNotReady},
		"beyond 2^64":         {ordersID, "orders", fmt.Sprintf(`{"id":"a","position":"%s.18446744073709551616"}`, epoch), 422, wire.ProblemInvalid},
		"no position":         {ordersID, "orders", `{"id":"a"}`, 422, wire.ProblemInvalid},
		"a position of words": {ordersID, "orders", `{"id":"a","position":"here\u001b[2J"}`, 422, wire.ProblemInvalid},
		"no ID":               {ordersID, "orders", fmt.Sprintf(`{"position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"an ID with controls": {ordersID, "orders", fmt.Sprintf(`{"id":"a\u001b[2J","position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"an ID of two lines":  {ordersID, "orders", fmt.Sprintf(`{"id":"a\nb","position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"a version of colour": {ordersID, "orders", fmt.Sprintf(`{"id":"a","version":"\u001b[31m","position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"a negative bound":    {ordersID, "orders", fmt.Sprintf(`{"id":"a","max_stale":-1,"position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"a bound without end": {ordersID, "orders", fmt.Sprintf(`{"id":"a","max_stale":9223372036854775807,"position":%q}`, at.Position), 422, wire.ProblemInvalid},
		"an unknown member":   {ordersID, "orders", `{"id":"a","workload":"spiffe://prod/files"}`, 400, wire.ProblemMalformed},
		"the most":            {ordersID, "orders", good + strings.Repeat(" ", httpapi.MaxAckBytes-len(good)), 204, ""},
		"one byte more":       {ordersID, "orders", good + strings.Repeat(" ", httpapi.MaxAckBytes-len(good)+1), 413, wire.ProblemTooLarge},
		"a huge one":          {ordersID, "orders", good + strings.Repeat(" ", 4<<20), 413, wire.ProblemTooLarge},
		"a good-bye":          {ordersID, "orders", `{"id":"gone","closed":true}`, 204, ""},
	} {
		a := r.client(one.id).post(wire.PathFeedAcks+"?aud="+one.audience, one.body)
		if a.status != one.status || one.problem != "" && a.name() != one.problem {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if n := r.Broker().KnownVerifiers(); n != 1 {
		t.Errorf("%d are known of one that was good", n)
	}
	for n := range broker.MaxVerifiersPerServer - 1 {
		if a := c.post(wire.PathFeedAcks+"?aud=orders", strings.Replace(good, `"a"`, fmt.Sprintf(`"v%d"`, n), 1)); a.status != 204 {
			t.Fatalf("instance %d: %d %s", n, a.status, a.body)
		}
	}
	for n := range 300 {
		a := c.post(wire.PathFeedAcks+"?aud=orders", strings.Replace(good, `"a"`, fmt.Sprintf(`"x%d"`, n), 1))
		if a.status != 429 || a.name() != wire.ProblemQuota || !strings.Contains(a.problem.Detail, "256 verifiers") {
			t.Fatalf("one too many: %d %s", a.status, a.body)
		}
	}
	// The other audience's server has its places, and operators see all of them.
	if a := r.client(filesID).post(wire.PathFeedAcks+"?aud=files", good); a.status != 204 {
		t.Errorf("another server: %d %s", a.status, a.body)
	}
	var list wire.VerifierList
	viewer := r.client(viewerID)
	viewer.send("GET", wire.PathVerifiers, "", viewer.at("operator")).into(t, &list)
	if len(list.Verifiers) != broker.MaxVerifiersPerServer+1 || list.Verifiers[0].Audience != "files" || list.Verifiers[0].Behind != 0 || list.Verifiers[0].MaxStale != 10 {
		t.Errorf("%d verifiers, the first %+v", len(list.Verifiers), list.Verifiers[0])
	}
}

// TestAcknowledgementsThatAreAhead wait for the feed, and meanwhile take no place from those of other audiences.
func TestAcknowledgementsThatAreAhead(t *testing.T) {
	r := startFederated(t, nil)
	var at wire.FeedSnapshot
	r.client(ordersID).get(wire.PathFeedSnapshot+"?aud=orders").into(t, &at)
	epoch, _, _ := strings.Cut(at.Position, ".")
	ahead := fmt.Sprintf(`{"id":"a","position":"%s.1000000"}`, epoch)
	var all sync.WaitGroup
	var answered atomic.Int64
	attack, stop := context.WithCancel(context.Background())
	for range 4 { // connections, with as many requests at once as they may have
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: r.clientTLS(ordersID), ForceAttemptHTTP2: true}}
		t.Cleanup(c.CloseIdleConnections)
		for range httpapi.MaxStreams {
			all.Go(func() {
				for attack.Err() == nil {
					resp, err := c.Post(r.BrokerURL()+wire.PathFeedAcks+"?aud=orders", wire.TypeJSON, strings.NewReader(ahead))
					if err != nil {
						continue
					}
					_ = resp.Body.Close()
					answered.Add(1)
					select { // who is refused at once does not keep the machine busy
					case <-attack.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	t.Cleanup(all.Wait)
	t.Cleanup(stop)
	r.eventually("the attack is under way", func() bool { return answered.Load() > 400 })
	files := r.client(filesID)
	taken, answers := 0, ""
	for range 10 {
		a := files.post(wire.PathFeedAcks+"?aud=files", fmt.Sprintf(`{"id":"a","position":%q,"max_stale":10}`, at.Position))
		if a.status == 204 {
			taken++
		}
		answers += fmt.Sprintf("%d ", a.status)
	}
	if taken < 5 { // the machine may be busy
		t.Errorf("another server's acknowledgements were answered with %s", answers)
	}
}

// TestWaitIsBounded, and takes no place among those who are worked on.
func TestWaitIsBounded(t *testing.T) {
	r := within(t, httpapi.Limits{Others: 1})
	c, server := r.client(reportID), r.client(ordersID)
	begun := c.begin()
	for _, wait := range []string{"31", "-1", "9223372036854775807"} {
		a := c.post(taskPath(begun.Task.ID, "/end"), fmt.Sprintf(`{"outcome":"completed","wait_seconds":%s}`, wait))
		c.refused(a, 422, wire.ProblemInvalid)
	}
	var at wire.FeedSnapshot
	server.get(wire.PathFeedSnapshot+"?aud=orders").into(t, &at)
	ack := func(position string) {
		t.Helper()
		if a := server.post(wire.PathFeedAcks+"?aud=orders", fmt.Sprintf(`{"id":"a","position":%q,"max_stale":60}`, position)); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	ack(at.Position)
	done := make(chan answer, 1)
	go func() {
		waits := r.client(reportID)
		waits.http.Timeout = time.Minute
		done <- waits.post(taskPath(begun.Task.ID, "/end"), `{"outcome":"completed","wait_seconds":30}`)
	}()
	var now wire.FeedSnapshot
	r.eventually("it has ended", func() bool {
		a := c.get(taskPath(begun.Task.ID, ""))
		return a.status == 200 && strings.Contains(string(a.body), `"state":"completed"`)
	})
	for range 20 {
		if a := c.get(taskPath(begun.Task.ID, "")); a.status != 200 {
			t.Errorf("who waits keeps the only place: %d %s", a.status, a.body)
		}
	}
	server.get(wire.PathFeedSnapshot+"?aud=orders").into(t, &now)
	r.eventually("the feed has it", func() bool {
		server.get(wire.PathFeedSnapshot+"?aud=orders").into(t, &now)
		return now.Position != at.Position
	})
	ack(now.Position)
	var receipt wire.Receipt
	a := <-done
	a.into(t, &receipt)
	if a.status != 200 || receipt.Propagation == nil || receipt.Propagation.Confirmed != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestVerifiersOfReplicas: what a verifier tells the second replica, on one Redis, confirms an end at the first.
func TestVerifiersOfReplicas(t *testing.T) {
	s := newSite(t, 4)
	one, two := s.start("one"), s.start("two")
	at := func(m *member, id string) *caller {
		c := m.client(id)
		c.base = "https://" + m.at["workload"]
		return c
	}
	report, orders := at(one, reportID), at(two, ordersID)
	var before wire.FeedSnapshot
	orders.get(wire.PathFeedSnapshot+"?aud=orders").into(t, &before)
	ack := func(position string) {
		t.Helper()
		two.eventually("the acknowledgement is taken", func() bool {
			return orders.post(wire.PathFeedAcks+"?aud=orders", fmt.Sprintf(`{"id":"a","position":%q,"max_stale":60}`, position)).status == 204
		})
	}
	ack(before.Position)
	one.eventually("the first replica knows", func() bool {
		_, all, err := one.Broker().Verifiers(t.Context())
		return err == nil && len(all) == 1
	})
	begun := report.beginAs(beginBody)
	pending := report.endWaiting(begun.Task.ID, 1)
	if p := pending.Propagation; p.Confirmed != 0 || len(p.Pending) != 1 || p.Pending[0].ID != "a" {
		t.Fatalf("got %+v", p)
	}
	ack(pending.Feed)
	if p := report.endWaiting(begun.Task.ID, 9).Propagation; p.Confirmed != 1 || len(p.Pending) != 0 {
		t.Errorf("got %+v", p)
	}
}
