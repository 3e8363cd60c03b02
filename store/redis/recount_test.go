package redis_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// recount compares what is counted with what is there.
type recount struct {
	*testing.T
	*server
	store     *data
	random    *rand.Rand
	workloads []spiffeid.ID
	tasks     []broker.Task
	grants    []broker.Grant
	requests  []broker.GrantRequest
}

// TestCountsAreTrue makes random calls over long times, in which records come and go: the counters of
// tasks, of grants and of children, kept call by call, are those of a recount, and the lists have what is there.
func TestCountsAreTrue(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := backend(s.URL(), 1)
	r := &recount{
		T: t, server: s, store: b.New(t, 1).(*data), random: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))),
		workloads: []spiffeid.ID{alice, spiffeid.RequireFromString("spiffe://example.org/bob")},
	}
	for step := range 1500 {
		what := r.step(b.Advance)
		if diff := r.compare(); diff != "" {
			t.Fatalf("after step %d, %s: %s", step, what, diff)
		}
	}
}

// TestBeginAfterItIsGone repeats a begin whose task has gone, and has not been taken away yet: it is a
// new one, and counts once.
func TestBeginAfterItIsGone(t *testing.T) {
	b := backend(start(t).URL(), 1)
	store := b.New(t, 1)
	req := beginning()
	req.Begin.Lease, req.Grants = time.Second, nil
	for range 10 {
		if reply, err := store.Grant(t.Context(), req); err != nil || reply.Replayed {
			t.Fatalf("Grant: %+v, error %v; want a new task", reply, err)
		}
		b.Advance(time.Second + broker.Margin)
	}
	req.Task, req.Quota.Tasks = broker.NewTaskID(0), 1
	if _, err := store.Grant(t.Context(), req); err != nil {
		t.Errorf("the only live task: %v", err)
	}
}

// TestEndOfWhatIsGone ends a task that has gone and has a child that nobody has looked at since. The child's
// own end finds its parent's record, in which it is counted.
func TestEndOfWhatIsGone(t *testing.T) {
	s := start(t)
	b := backend(s.URL(), 1)
	r := &recount{T: t, server: s, store: b.New(t, 1).(*data), workloads: []spiffeid.ID{alice}}
	parent, child := beginning(), beginning()
	child.Begin.Parent, child.Begin.Lease = parent.Task, 5*time.Minute
	r.grant(parent)
	r.grant(child)
	_, err := r.store.End(t.Context(), []broker.Ending{completing(parent.Task)})
	r.must(err)
	b.Advance(4 * time.Minute)
	lost := completing(parent.Task)
	lost.Workload, lost.Lost = alice, r.tasks[0].Deadline
	replies, err := r.store.End(t.Context(), []broker.Ending{lost})
	if r.must(err); replies[0].Task.State != broker.Completed {
		t.Fatalf("End of what is gone: %+v; want a record of the end", replies[0])
	}
	if diff := r.compare(); diff != "" {
		t.Errorf("after the end: %s", diff)
	}
	b.Advance(10 * time.Minute)
	r.grant(beginning())
	if diff := r.compare(); diff != "" {
		t.Errorf("after all has passed: %s", diff)
	}
}

func pick[T any](r *recount, list []T) (one T) {
	if len(list) == 0 {
		return one
	}
	return list[max(0, len(list)-1-r.random.IntN(40))]
}

func (r *recount) step(advance func(time.Duration)) string {
	ctx := r.Context()
	switch n := r.random.IntN(20); {
	case n < 7:
		req := beginning()
		req.Workload = pick(r, r.workloads)
		req.Begin.Lease = time.Duration(1+r.random.IntN(60)) * time.Second
		req.Begin.Deadline = time.Duration(5+r.random.IntN(100)) * time.Second
		req.Grants[0].Life = time.Duration(2+r.random.IntN(60)) * time.Second
		req.Quota = broker.Quota{Tasks: 30, Grants: 60, Children: 5}
		if r.random.IntN(2) == 0 {
			parent := pick(r, r.tasks)
			req.Begin.Parent = parent.ID
			if r.random.IntN(2) == 0 && parent.ID != "" {
				delegation := broker.DelegationID(fmt.Sprint("dlg_", r.random.IntN(10)))
				req.Begin.Join = &broker.Join{Delegation: delegation, Delegator: parent.Workload, Until: parent.Begun.Add(time.Minute)}
			}
		}
		if r.random.IntN(3) == 0 {
			req.Begin.Ref = broker.TaskRef{Kind: "ci/run", ID: fmt.Sprint(r.random.IntN(5))}
		}
		if r.random.IntN(3) == 0 {
			req.Begin.Key = fmt.Sprint(r.random.IntN(5))
		}
		r.grant(req)
		return "begin"
	case n < 9:
		req := beginning()
		task := pick(r, r.tasks)
		req.Workload, req.Task, req.Begin = task.Workload, task.ID, nil
		if task.ID != "" {
			r.grant(req)
		}
		return "issue"
	case n < 10:
		req := pick(r, r.requests)
		if _, err := r.store.Lookup(ctx, broker.Ref{Task: req.Task}); err == nil { // no ID is used again
			r.grant(req)
		}
		return "repeat"
	case n < 11:
		task := pick(r, r.tasks)
		if task.ID != "" {
			_, err := r.store.Heartbeat(ctx, []broker.Beat{{Task: task.ID, Workload: task.Workload, Adopt: r.random.IntN(3) == 0}})
			r.must(err)
		}
		return "heartbeat"
	case n < 14:
		return r.end()
	case n < 15:
		if g := pick(r, r.grants); g.ID != "" {
			_, err := r.store.End(ctx, []broker.Ending{{Kind: broker.TargetGrant, Grant: g.ID, Cause: broker.CauseOperator}})
			r.must(err)
		}
		return "revoke"
	case n < 16:
		if r.random.IntN(10) == 0 {
			r.must(r.client.Del(ctx, "test1:{p00}:alarms").Err()) // sweeping puts them back
		}
		page, err := r.store.List(ctx, broker.Query{Due: true})
		r.must(err)
		for _, task := range page.Tasks {
			if r.random.IntN(2) == 0 {
				_, err := r.store.End(ctx, []broker.Ending{{Kind: broker.TargetTask, Task: task.ID, IfDue: true}})
				r.must(err)
			}
		}
		return "sweep"
	default:
		advance(time.Duration(r.random.IntN(20_000)) * time.Millisecond)
		return "advance"
	}
}

func (r *recount) end() string {
	task := pick(r, r.tasks)
	e := completing(task.ID)
	e.Workload, e.Holder = task.Workload, r.random.IntN(3)
	switch r.random.IntN(4) {
	case 0:
		e.IfDue = true
	case 1:
		e.Lost = task.Deadline
	case 2:
		e.Cause = broker.CauseAudit
	}
	if task.ID != "" {
		_, err := r.store.End(r.Context(), []broker.Ending{e})
		r.must(err)
	}
	return fmt.Sprintf("end %+v", e)
}

func (r *recount) grant(req broker.GrantRequest) {
	reply, err := r.store.Grant(r.Context(), req)
	r.requests = append(r.requests, req)
	if err == nil && !reply.Replayed {
		r.tasks = append(r.tasks, reply.Task)
		r.grants = append(r.grants, reply.Grants...)
	}
	if errors.Is(err, broker.ErrUnavailable) || errors.Is(err, broker.ErrUnconfirmed) {
		r.Fatal(err)
	}
}

func (r *recount) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// compare counts all that is there. Each record is read as MessagePack by the server itself.
func (r *recount) compare() string {
	prefix := "test1:{p00}:"
	const script = `
	local out, children, live = {}, {}, {}
	local raws = redis.call('HGETALL', KEYS[1])
	local t = {}
	for i = 1, #raws, 2 do t[raws[i]] = cmsgpack.unpack(raws[i + 1]) end
	for id, f in pairs(t) do
		if not f[17] and not redis.call('ZSCORE', KEYS[2], id) then
			live[f[2]] = (live[f[2]] or 0) + 1
			if f[8] ~= '' then
				local p = string.sub(f[8], -26)
				children[p] = (children[p] or 0) + 1
			end
		end
	end
	for id, f in pairs(t) do
		if f[16] ~= (children[id] or 0) then out[#out + 1] = 'children of ' .. id .. ' ' .. f[16] .. ' instead of ' .. (children[id] or 0) end
	end
	for w, n in pairs(live) do out[#out + 1] = w .. '=' .. n end

	local listed = {}
	for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
		local kind, id = string.sub(member, 1, 1), string.sub(member, -26)
		if kind == 'g' then id = string.sub(member, 2, 27) end
		listed[kind .. id] = true
		if not t[id] and not (kind == 'g' and redis.call('ZSCORE', KEYS[4], id)) then
			out[#out + 1] = 'children: the lists have ' .. member .. ', and there is no such task'
		end
	end
	for id, f in pairs(t) do
		if not listed['t' .. id] or (f[8] ~= '') ~= (listed['b' .. id] or false) or (f[19] ~= '') ~= (listed['r' .. id] or false) then
			out[#out + 1] = 'children: the lists lack ' .. id
		end
	end
	return out`
	lines, err := r.client.Eval(r.Context(), script, []string{prefix + "tasks", prefix + "due", prefix + "lists", prefix + "alarms"}).StringSlice()
	r.must(err)
	last, err := r.client.HGet(r.Context(), prefix+"meta", "last").Int64()
	r.must(err)
	grants := map[string]int{}
	for _, g := range r.grants {
		if g.Expires.UnixMilli() > last && r.client.Exists(r.Context(), prefix+"g:"+bare(g.ID)).Val() == 1 {
			grants[g.Workload.String()]++
		}
	}
	usage, err := r.client.HGetAll(r.Context(), prefix+"usage").Result()
	r.must(err)
	for _, w := range r.workloads {
		raw := []byte(usage[w.String()])
		tasks, total, sum, standing := 0, 0, 0, 0
		if len(raw) > 0 {
			tasks, total = int(binary.BigEndian.Uint32(raw)), int(binary.BigEndian.Uint32(raw[4:]))
			for b := raw[8:]; len(b) > 0; b = b[8:] {
				n := int(binary.BigEndian.Uint32(b[4:]))
				sum += n
				if int64(binary.BigEndian.Uint32(b))*1000 > last {
					standing += n
				}
			}
		}
		if tasks > 0 && !slices.Contains(lines, fmt.Sprintf("%s=%d", w, tasks)) {
			return fmt.Sprintf("%s has %d tasks, and there are %v", w, tasks, lines)
		}
		if tasks == 0 && slices.ContainsFunc(lines, func(l string) bool { return len(l) > len(w.String()) && l[:len(w.String())] == w.String() }) {
			return fmt.Sprintf("%s has no tasks, and there are %v", w, lines)
		}
		if total != sum || standing != grants[w.String()] {
			return fmt.Sprintf("%s has %d grants in all, %d in the buckets, %d that stand, and there are %d", w, total, sum, standing, grants[w.String()])
		}
	}
	for _, l := range lines {
		if l[:8] == "children" {
			return l
		}
	}
	return ""
}
