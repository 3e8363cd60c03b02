package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

// present is a task with presence whose stream is open.
type present struct {
	wire.Task
	stream string
	line   net.Conn
	body   io.ReadCloser
}

// present begins a task, and follows it over a connection of its own.
func (e *example) present(at string) present {
	e.t.Helper()
	var begun wire.BeginResponse
	if _, err := e.workload(at).call("POST", wire.PathTasks, `{"name":"payout","purpose":"try two replicas","lease_seconds":6,"presence":true}`, &begun); err != nil {
		e.t.Fatal(err)
	}
	p := present{Task: begun.Task}
	transport := &http.Transport{TLSClientConfig: e.tls.Clone(), DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		p.line, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return p.line, err
	}}
	e.t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Get("https://" + e.at[at] + wire.PathEvents + "?task=" + p.ID)
	if err != nil || resp.StatusCode != http.StatusOK {
		e.t.Fatal(resp, err)
	}
	e.t.Cleanup(func() { resp.Body.Close() })
	p.stream, p.body = resp.Header.Get(wire.HeaderStream), resp.Body
	if text, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(text, wire.EventBeat) {
		e.t.Fatal(text, err)
	}
	return p
}

// lapses sends heartbeats that name a stream, or none, until the task is over.
func (e *example) lapses(w workload, id, stream string) wire.Task {
	e.t.Helper()
	var task wire.Task
	soon(e.t, time.Minute, id+" has lapsed", func() bool {
		time.Sleep(200 * time.Millisecond)
		if _, err := w.call("POST", wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}],"stream":%q}`, id, stream), &wire.HeartbeatResponse{}); err != nil {
			e.t.Fatal(err)
		}
		if _, err := w.call("GET", wire.PathTasks+"/"+id, "", &task); err != nil {
			e.t.Fatal(err)
		}
		return task.State != wire.StateActive
	})
	return task
}

// TestP6_TwoReplicasLoseTheirClients: one that vanishes from the balancer without a word is found all the same, and the
// tasks of a replica that is killed end a lease later when nobody comes for them.
func TestP6_TwoReplicasLoseTheirClients(t *testing.T) {
	e := startExample(t)
	vanishing := e.present("WORKLOAD")
	lost := time.Now()
	redistest.Cut(t, vanishing.line)
	got := e.lapses(e.workload("WORKLOAD"), vanishing.ID, vanishing.stream)
	if took := got.EndedAt.Sub(lost); got.State != wire.StateLapsed || got.Cause != "presence" || took < 5*time.Second || took > 22*time.Second {
		t.Errorf("%s by %s, %s after the cut; want about 12 s", got.State, got.Cause, took)
	}
	orphan := e.present("A_WORKLOAD")
	b := e.workload("B_WORKLOAD")
	if err := syscall.Kill(e.pid("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, orphan.body) // the client hears of it
	var left wire.Task
	if _, err := b.call("GET", wire.PathTasks+"/"+orphan.ID, "", &left); err != nil {
		t.Fatal(err)
	}
	got = e.lapses(b, orphan.ID, "")
	if left.State != wire.StateActive || got.State != wire.StateLapsed || !got.EndedAt.Equal(left.LeaseExpiresAt) {
		t.Errorf("it was %s until %s, and is %s by %s since %s", left.State, left.LeaseExpiresAt, got.State, got.Cause, got.EndedAt)
	}
}
