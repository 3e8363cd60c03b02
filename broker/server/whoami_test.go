package server_test

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// TestWhoami has what each kind of caller learns of itself and of the replica that answers.
func TestWhoami(t *testing.T) {
	r := startFederated(t, nil, func(c *server.Config) { c.Version = "1.2.3" })
	ask := func(id string) (who wire.Whoami) {
		t.Helper()
		a := r.client(id).get(wire.PathWhoami)
		if a.status != http.StatusOK {
			t.Fatalf("%s: %d %s", id, a.status, a.body)
		}
		a.into(t, &who)
		if off := time.Since(who.Replica.Time); !who.Replica.Ready || who.Replica.Reason != "" || who.Replica.Version != "1.2.3" || off < -time.Second || off > 10*time.Second {
			t.Errorf("%s: the replica is %+v", id, who.Replica)
		}
		return who
	}
	if who := ask(reportID); who.Owner != "team-fin" || len(who.Ceiling) != 2 || len(who.Serves) != 0 || who.Serves == nil {
		t.Errorf("a workload: %+v", who)
	}
	if who := ask(ordersID); who.Owner != "" || len(who.Ceiling) != 0 || !slices.Equal(who.Serves, []string{"orders"}) {
		t.Errorf("a server of an audience: %+v", who)
	}
	if a := r.client(ordersID).post(wire.PathTasks, beginBody); a.name() != wire.ProblemUnregistered {
		t.Errorf("a server began a task: %d %s", a.status, a.body)
	}
	r.client(reportID).refused(r.client(nobodyID).get(wire.PathWhoami), http.StatusForbidden, wire.ProblemUnregistered)
}

// TestWhoamiSaysWhyNotReady: a workload is told what keeps a replica from issuing, and not where that is.
func TestWhoamiSaysWhyNotReady(t *testing.T) {
	fault := &atomic.Int32{}
	r := startFederated(t, nil, func(c *server.Config) { c.Store = faultyStore{c.Store, fault} })
	c := r.client(reportID)
	fault.Store(away)
	var who wire.Whoami
	r.eventually("the replica is not ready", func() bool {
		c.get(wire.PathWhoami).into(t, &who)
		return !who.Replica.Ready
	})
	if !strings.HasPrefix(who.Replica.Reason, "broker not ready: the store's feed has not been heard for ") {
		t.Errorf("the reason is %q", who.Replica.Reason)
	}
	fault.Store(works)
	r.eventually("the replica is ready again", func() bool {
		who = wire.Whoami{}
		c.get(wire.PathWhoami).into(t, &who)
		return who.Replica.Ready && who.Replica.Reason == ""
	})
}
