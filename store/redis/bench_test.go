package redis_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// number reads one from INFO.
func number(tb testing.TB, c *goredis.Client, section, name string) float64 {
	tb.Helper()
	text, err := c.Info(context.Background(), section).Result()
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, name+":")
	line, _, _ := strings.Cut(rest, "\r\n")
	n, err := strconv.ParseFloat(line, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// cpu is the time that the server, and this process, have spent.
func cpu(tb testing.TB, c *goredis.Client) (server, own time.Duration) {
	seconds := number(tb, c, "cpu", "used_cpu_user") + number(tb, c, "cpu", "used_cpu_sys")
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(seconds * 1e9), time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// typical is a begin with one token, as a busy workload makes them.
func typical(i int) broker.GrantRequest {
	return broker.GrantRequest{
		Workload: spiffeid.RequireFromString(fmt.Sprintf("spiffe://prod.example.org/ns/billing/sa/export-%d", i%20)),
		Task:     broker.NewTaskID(0), Control: 1 << 40, Quota: broker.Quota{Tasks: 1e6, Grants: 1e6, Children: 1000},
		Begin: &broker.Beginning{
			Name: "nightly-export", Purpose: "export yesterday's orders to the warehouse", Lease: 30 * time.Second, Deadline: time.Hour,
			Ceiling: broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}},
		},
		Grants: []broker.Asked{ask()},
	}
}

func ask() broker.Asked {
	return broker.Asked{
		ID: broker.NewGrantID(0), Audience: "orders", Scopes: broker.Scopes{"orders:read"}, Binding: broker.BindCertificate,
		Thumbprint: "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2", Decision: broker.NewDecisionID(), Life: time.Minute,
	}
}

// Benchmark reports the CPU time of the server and of this process for each call, at a number of
// callers, and calls per second.
func Benchmark(b *testing.B) {
	s := start(b)
	store := s.open(b, redis.Config{})
	server := s.client
	var mu sync.Mutex
	var tasks []broker.TaskID
	take := func() broker.TaskID {
		mu.Lock()
		defer mu.Unlock()
		id := tasks[len(tasks)-1]
		tasks = tasks[:len(tasks)-1]
		return id
	}
	begin := func(i int) error {
		reply, err := store.Grant(b.Context(), typical(i))
		mu.Lock()
		defer mu.Unlock()
		tasks = append(tasks, reply.Task.ID)
		return err
	}
	var root broker.GrantReply
	for _, op := range []struct {
		name string
		call func(i int) error
	}{
		{"begin and issue", begin},
		{"issue", func(i int) error {
			_, err := store.Grant(b.Context(), broker.GrantRequest{
				Workload: root.Task.Workload, Task: root.Task.ID, Control: 1 << 40, Quota: broker.Quota{Grants: 1e6}, Grants: []broker.Asked{ask()},
			})
			return err
		}},
		{"heartbeat", func(i int) error {
			_, err := store.Heartbeat(b.Context(), []broker.Beat{{Task: root.Task.ID, Workload: root.Task.Workload, Holder: 1}})
			return err
		}},
		{"look up", func(i int) error {
			_, err := store.Lookup(b.Context(), broker.Ref{Grant: root.Grants[0].ID})
			return err
		}},
		{"end", func(i int) error {
			replies, err := store.End(b.Context(), []broker.Ending{{
				Kind: broker.TargetTask, Task: take(), State: broker.Completed, Cause: broker.CauseCaller, Event: broker.NewEventID(),
			}})
			if err == nil {
				err = replies[0].Err
			}
			return err
		}},
	} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d callers", op.name, callers), func(b *testing.B) {
				root, _ = store.Grant(b.Context(), typical(0))
				for op.name == "end" && len(tasks) < b.N {
					if err := begin(len(tasks)); err != nil {
						b.Fatal(err)
					}
				}
				b.ResetTimer()
				server0, own0 := cpu(b, server)
				var next atomic.Int64
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							if err := op.call(int(i)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				server1, own1 := cpu(b, server)
				b.ReportMetric(float64((server1-server0).Microseconds())/float64(b.N), "redis-µs/op")
				b.ReportMetric(float64((own1-own0).Microseconds())/float64(b.N), "own-µs/op")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
			})
		}
	}
}

// TestSize holds the figures of the README: what the server keeps for a grant and for a task.
func TestSize(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	server := s.client
	const n = 2048 // a full table, and no more than a lane lets wait
	used := func() float64 { return number(t, server, "memory", "used_memory") }
	var first broker.GrantRequest
	measure := func(what string, most float64, make func(i int) broker.GrantRequest) {
		before := used()
		for _, err := range together(n, func(i int) error {
			_, err := store.Grant(t.Context(), make(i))
			return err
		}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		each := (used() - before) / n
		t.Logf("%s: %.0f bytes", what, each)
		if each > most {
			t.Errorf("%s takes %.0f bytes; want at most %.0f", what, each, most)
		}
	}
	first = typical(0)
	if _, err := store.Grant(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	measure("a grant", 540, func(int) broker.GrantRequest {
		return broker.GrantRequest{Workload: first.Workload, Task: first.Task, Control: 1 << 40, Grants: []broker.Asked{ask()}}
	})
	measure("a task", 600, func(i int) broker.GrantRequest {
		r := typical(i)
		r.Grants = nil
		return r
	})
	measure("a task with a key", 750, func(i int) broker.GrantRequest {
		r := typical(i)
		r.Grants, r.Begin.Key = nil, fmt.Sprintf("7f0c1c52-3ad5-4f7e-9d55-%012d", i)
		return r
	})
	measure("a task below another one, with a ref", 1100, func(i int) broker.GrantRequest {
		r := typical(0)
		r.Quota.Children = 0
		r.Grants, r.Begin.Parent, r.Begin.Ref = nil, first.Task, broker.TaskRef{Kind: "k8s/job", ID: fmt.Sprintf("7f0c1c52-3ad5-4f7e-9d55-%012d", i)}
		return r
	})
}
