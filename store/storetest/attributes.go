package storetest

import (
	"errors"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
)

func attributeCases() []testCase {
	return []testCase{
		{"attributes/kept", attributesKept},
		{"attributes/each alone", attributesAlone},
		{"attributes/of a grant", attributesOfGrant},
		{"attributes/replayed", attributesReplayed},
		{"note/the last one counts", noteLast},
		{"note/none leaves the last", noteNone},
		{"note/not of a task that has ended", noteEnded},
		{"note/in a batch", noteBatch},
		{"note/stays when other things change", noteStays},
	}
}

// everything is as much as a task can say about itself, and some of it looks like something else.
func everything() (broker.Attributes, broker.Details) {
	return broker.Attributes{
		Ticket:  "CHG-2117 \"quoted\" ünïcode",
		Ref:     broker.TaskRef{Kind: "k8s/job", ID: "6f1c-\x00-9", URL: "https://k8s.example.org/jobs?x=1&y=2"},
		Labels:  map[string]string{"env": "prod", "team": "", "z": "=,;\n", "a/b": strings.Repeat("v", broker.MaxLabelValue)},
		Context: broker.Object(`{"intent":"export","n":[1,2,{"":null}],"text":"\u0000é"}`),
	}, broker.Details{`{"actions":["read"],"type":"customer"}`, `{"type":"payment"}`, broker.Object(`{"type":"` + strings.Repeat("x", 900) + `"}`)}
}

func saying(a broker.Attributes, d broker.Details) option {
	return func(r *broker.GrantRequest) { r.Begin.Attributes, r.Begin.Ceiling.Details = a, d }
}

func noting(task broker.Task, note string) broker.Beat {
	return broker.Beat{Task: task.ID, Workload: task.Workload, Note: note}
}

// beats makes heartbeats, all of which must be answered.
func (b *bench) beats(list ...broker.Beat) []broker.Pulse {
	b.Helper()
	pulses, err := b.store.Heartbeat(b.Context(), list)
	if err != nil || len(pulses) != len(list) {
		b.Fatalf("Heartbeat: got %d pulses to %d beats, error %v", len(pulses), len(list), err)
	}
	return pulses
}

// kept wants a task to say what it said when it began, wherever it is seen.
func (b *bench) kept(task broker.Task, a broker.Attributes, d broker.Details) {
	b.Helper()
	b.same("the attributes", task.Attributes, a)
	b.same("the details", task.Ceiling.Details, d)
	b.same("the task, looked up", b.now(task), task)
	b.same("the task, listed", b.list(broker.Query{}).Tasks, []broker.Task{task})
	pulse := b.beat(task)
	b.same("the attributes in a pulse", pulse.Task.Attributes, a)
	b.same("the details in a pulse", pulse.Task.Ceiling.Details, d)
	reply := b.end(completing(task))
	b.same("the attributes of an ended task", reply.Task.Attributes, a)
	b.same("the details of an ended task", reply.Task.Ceiling.Details, d)
}

func attributesKept(b *bench) {
	a, d := everything()
	task := b.begin(saying(a, d))
	a.Labels["env"] = "changed by the caller"
	a, d = everything()
	b.kept(task, a, d)
}

// attributesAlone: one that is there does not need another one.
func attributesAlone(b *bench) {
	a, d := everything()
	for _, one := range []broker.Attributes{{}, {Ticket: a.Ticket}, {Ref: a.Ref}, {Labels: a.Labels}, {Context: a.Context}} {
		store := b.New(b.T, b.shards)
		alone := &bench{T: b.T, Backend: b.Backend, store: store, shards: b.shards, shard: b.shard}
		alone.kept(alone.begin(saying(one, nil)), one, nil)
		alone = &bench{T: b.T, Backend: b.Backend, store: b.New(b.T, b.shards), shards: b.shards, shard: b.shard}
		alone.kept(alone.begin(saying(one, d[:1])), one, d[:1])
	}
}

func attributesOfGrant(b *bench) {
	a, d := everything()
	with, without, bare := b.ask("a", time.Minute), b.ask("a", time.Minute), b.ask("b", time.Minute)
	with.Details, bare.Details, bare.Scopes = d[:2], d, nil
	begun := b.must(b.root(saying(a, d), asking(with, without)))
	later := b.must(b.issuing(begun.Task, bare))
	for i, g := range append(begun.Grants, later.Grants...) {
		ask := []broker.Asked{with, without, bare}[i]
		b.same("the details of the grant", g.Details, ask.Details)
		b.same("its scopes", g.Scopes, ask.Scopes)
		b.same("the grant, looked up", b.lookup(broker.Ref{Grant: g.ID}).Grant, g)
	}
	reply := b.end(revoking(begun.Grants[0]))
	b.same("the details of a revoked grant", reply.Grant.Details, with.Details)
}

func attributesReplayed(b *bench) {
	a, d := everything()
	ask := b.ask("a", time.Minute)
	ask.Details = d[1:]
	begun := b.must(b.root(key("k", 1), saying(a, d), asking(ask)))
	b.beats(noting(begun.Task, "halfway"))
	reply := b.must(b.root(key("k", 1), saying(broker.Attributes{Ticket: "another"}, nil), asking(b.ask("a", time.Minute))))
	if !reply.Replayed {
		b.Fatal("the reply does not say that it is a replay")
	}
	b.same("the replayed task", reply.Task, b.now(begun.Task))
	b.same("the replayed attributes", reply.Task.Attributes, a)
	b.same("the replayed grants", reply.Grants, begun.Grants)
	b.refused(b.root(key("k", 2), saying(a, d)), broker.ErrMismatch)
}

func noteLast(b *bench) {
	task := b.begin()
	if task.Note != "" || !task.Noted.IsZero() {
		b.Fatalf("a new task has the note %q of %s", task.Note, task.Noted)
	}
	for _, note := range []string{"1 of 3", "2 of 3", strings.Repeat("é", broker.MaxNote/2)} {
		b.Advance(5 * time.Millisecond)
		pulse := b.beats(noting(task, note))[0]
		if pulse.Err != nil || pulse.Task.Note != note || !pulse.Task.Noted.Equal(pulse.Now) || !pulse.Task.LeaseEnd.Equal(pulse.Now.Add(task.Lease)) {
			b.Fatalf("at %s: got %+v; want the note %q of now, and another lease", pulse.Now, pulse, note)
		}
		b.same("the task, looked up", b.now(task), pulse.Task)
		b.same("the task, listed", b.list(broker.Query{}).Tasks, []broker.Task{pulse.Task})
	}
}

func noteNone(b *bench) {
	task := b.begin()
	noted := b.beats(noting(task, "halfway"))[0].Task
	b.Advance(5 * time.Millisecond)
	pulse := b.beat(task)
	if pulse.Task.Note != "halfway" || !pulse.Task.Noted.Equal(noted.Noted) || !pulse.Task.LeaseEnd.After(noted.LeaseEnd) {
		b.Fatalf("got %+v after %+v; want the same note and a later lease", pulse.Task, noted)
	}
}

func noteEnded(b *bench) {
	task := b.begin()
	b.beats(noting(task, "first"))
	ended := b.end(completing(task)).Task
	b.same("the note of an ended task", ended.Note, "first")
	pulses := b.beats(noting(task, "late"), broker.Beat{Task: task.ID, Workload: bob(), Note: "foreign"})
	b.same("the pulse", pulses[0].Task, ended)
	if !errors.Is(pulses[1].Err, broker.ErrNotFound) {
		b.Fatalf("a foreign beat: %+v; want ErrNotFound", pulses[1])
	}
	b.same("the task after it", b.now(task), ended)
}

func noteBatch(b *bench) {
	one, two, three := b.begin(), b.begin(), b.begin()
	b.beats(noting(three, "three"))
	pulses := b.beats(noting(one, "one"), noting(two, ""), noting(broker.Task{ID: broker.NewTaskID(b.shard), Workload: alice()}, "nobody"), noting(one, "one again"), noting(three, ""))
	for i, want := range []string{"one", "", "", "one again", "three"} {
		if pulses[i].Task.Note != want {
			b.Errorf("pulse %d has the note %q; want %q", i, pulses[i].Task.Note, want)
		}
	}
	b.same("the task", b.now(one).Note, "one again")
}

func noteStays(b *bench) {
	parent := b.begin()
	noted := b.beats(noting(parent, "halfway"))[0].Task
	b.issue(parent, "a", time.Minute)
	child := b.begin(below(parent))
	b.beats(noting(child, "of the child"))
	b.same("the task", b.now(parent), noted)
	b.end(completing(child))
	b.same("the task after its child's end", b.now(parent), noted)
	b.Advance(5 * time.Millisecond)
	b.same("the note of the end", b.end(completing(parent)).Task.Note, "halfway")
}
