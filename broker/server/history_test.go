package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

// history is what clients have seen of grants, with the times of each call.
type history struct {
	start time.Time
	mu    sync.Mutex
	calls map[string][]porcupine.Operation // by grant
	later map[string]bool                  // grants with an end that was answered 202: see TestP4
	ended int                              // answered 200
}

// seen is one answer: of an end, or of a look-up.
type seen struct {
	end     bool
	unknown bool // no answer that says what has become of the end
	live    bool // the look-up's
}

// grantModel is a grant as clients may see it: alive, and from some end on dead for ever. An end
// without an answer may have happened at any time, or never.
var grantModel = porcupine.Model{
	Init: func() any { return true },
	Step: func(state, _, output any) (bool, any) {
		alive, o := state.(bool), output.(seen)
		if o.end {
			return true, false
		}
		return o.live == alive, alive
	},
}

const never = int64(1) << 62

func (h *history) add(grant string, client int, called time.Time, s seen) {
	op := porcupine.Operation{ClientId: client, Output: s, Call: int64(called.Sub(h.start)), Return: int64(time.Since(h.start))}
	if s.unknown {
		op.Return = never
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[grant] = append(h.calls[grant], op)
	if s.end && !s.unknown {
		h.ended++
	}
}

// do is send for answers that may not come.
func (c *caller) do(method, path, body string) (int, []byte) {
	req, err := http.NewRequest(method, c.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil
	}
	return resp.StatusCode, text
}

// live is a task that a worker goes on asking about.
type live struct {
	task, grant, key string
}

// worker is one workload that begins, looks and ends at whichever replica it happens to ask.
func (h *history) worker(client int, m *member, urls func() []string, stop <-chan struct{}) {
	c := m.client(workloadName(client))
	c.http.Timeout = 3 * time.Second
	var held []live
	for {
		select {
		case <-stop:
			return
		default:
		}
		all := urls()
		c.base = all[rand.N(len(all))]
		if len(held) < 20 {
			status, text := c.do("POST", wire.PathTasks, `{"name":"h","purpose":"history","lease_seconds":600,"tokens":[{"audience":"orders","ttl_seconds":900}]}`)
			var begun struct {
				wire.BeginResponse
				Key string `json:"end_key"`
			}
			if status == http.StatusCreated && json.Unmarshal(text, &begun) == nil {
				held = append(held, live{begun.Task.ID, begun.Tokens[0].GrantID, begun.Key})
			}
			continue
		}
		i := rand.N(len(held))
		if rand.N(10) == 0 {
			h.end(client, c, held[i])
		} else {
			h.look(client, c, held[i].grant)
		}
		if rand.N(100) == 0 {
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
		}
	}
}

func (h *history) end(client int, c *caller, l live) {
	called := time.Now()
	status, _ := c.do("POST", taskPath(l.task, "/end"), fmt.Sprintf(`{"outcome":"completed","end_key":%q}`, l.key))
	if status == http.StatusAccepted {
		h.mu.Lock()
		h.later[l.grant] = true
		h.mu.Unlock()
	}
	h.add(l.grant, client, called, seen{end: true, unknown: status != http.StatusOK})
}

func (h *history) look(client int, c *caller, grant string) {
	called := time.Now()
	var g wire.Grant
	if status, text := c.do("GET", "/v1/grants/"+grant, ""); status != http.StatusOK || json.Unmarshal(text, &g) != nil {
		return // what is not answered says nothing
	}
	h.add(grant, client, called, seen{live: g.Live})
}

// TestP3_NothingComesBack has clients begin, end and look up at three replicas while connections break,
// answers get lost, Redis stops, is killed and restarts from its append-only file, and a replica is
// replaced: whatever an end was answered 200 for is never called alive again, by any replica.
func TestP3_NothingComesBack(t *testing.T) {
	s := newSite(t, 4, "--appendonly", "yes", "--appendfsync", "always")
	members := []*member{s.start("a"), s.start("b"), s.start("c")}
	var mu sync.Mutex
	urls := func() (out []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range members {
			out = append(out, m.url())
		}
		return out
	}
	h := &history{start: time.Now(), calls: map[string][]porcupine.Operation{}, later: map[string]bool{}}
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range 6 {
		workers.Go(func() { h.worker(i, members[0], urls, stop) })
	}
	const moment = 300 * time.Millisecond
	for _, fault := range []func(){
		func() {},
		func() { members[0].redis.Reset(); members[1].redis.Reset() },
		func() { members[0].redis.Set(redistest.Fault{Deaf: true}) },
		func() { members[1].redis.Set(redistest.Fault{Silent: true}) },
		func() { members[2].redis.Set(redistest.Fault{Latency: 20 * time.Millisecond}) },
		func() { s.redis.Pause(); time.Sleep(2 * moment); s.redis.Resume() },
		func() { s.redis.Kill(); s.redis.Run() },
		func() {
			members[2].halt()
			next := s.start("d")
			mu.Lock()
			members[2] = next
			mu.Unlock()
		},
	} {
		fault()
		time.Sleep(moment)
		for _, m := range members {
			m.redis.Set(redistest.Fault{})
		}
		for _, m := range members {
			m.eventually("the replica is ready again", func() bool { return m.Ready() == nil })
		}
		time.Sleep(moment)
	}
	close(stop)
	workers.Wait()
	h.check(t)
}

func (h *history) check(t *testing.T) {
	t.Helper()
	looked := 0
	for grant, calls := range h.calls {
		if h.later[grant] {
			continue
		}
		for _, c := range calls {
			if !c.Output.(seen).end {
				looked++
			}
		}
		if !porcupine.CheckOperations(grantModel, calls) {
			t.Errorf("%s came back to life: %v", grant, calls)
		}
	}
	if h.ended < 20 || looked < 100 {
		t.Errorf("%d ends and %d look-ups are too few to say anything", h.ended, looked)
	}
	t.Logf("%d grants, %d ends answered 200, %d look-ups, %d grants with an end that was answered 202", len(h.calls), h.ended, looked, len(h.later))
}
