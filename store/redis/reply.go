package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// reply is a script's answer: a list of strings, integers and lists, read from the front. Its first
// failure stays in err, which is one of the contract's.
type reply struct {
	status string // "ok", or why not
	rest   []any
	err    error
	script *script
	shard  int
}

// answer turns a command into what its script said.
func (s *Store) answer(c call, cmd *redis.Cmd) reply {
	r := reply{script: c.script, shard: c.shard}
	values, err := cmd.Slice()
	if err != nil {
		r.err = c.script.failed(err)
		return r
	}
	r.rest = values
	r.status = r.text()
	if echo := r.text(); r.err == nil && echo != c.echo {
		r.err = fmt.Errorf("%w: script %s answered about %q instead of %q", c.script.doubt(), c.script.name, echo, c.echo)
	}
	if r.err == nil && r.status == "epoch" {
		r.err = fmt.Errorf("%w: shard %d is not of the known data set; it has lost data, and the feed must be followed anew: %w",
			broker.ErrUnavailable, c.shard, broker.ErrEpoch)
	}
	return r
}

// doubt is what an answer that makes no sense stands for.
func (sc *script) doubt() error {
	if sc.writes {
		return broker.ErrUnconfirmed
	}
	return broker.ErrUnavailable
}

// refusals begin the errors of a server that has done nothing.
var refusals = [...]string{
	"NOSCRIPT", "OOM", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
	"CROSSSLOT", "BUSY", "NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "NOREPLICAS", "ERR max number of clients",
}

// failed says what an error leaves open: ErrUnavailable when nothing was sent or the server said no,
// and ErrUnconfirmed when a write may have happened.
func (sc *script) failed(err error) error {
	why := sc.doubt()
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrClosed) ||
		errors.Is(err, redis.ErrPoolExhausted) {
		why = broker.ErrUnavailable
	}
	for _, prefix := range refusals {
		if redis.HasErrorPrefix(err, prefix) {
			why = broker.ErrUnavailable
		}
	}
	return fmt.Errorf("%w: redis, script %s: %w", why, sc.name, err)
}

func (r *reply) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: script %s gave an answer that cannot be read: %s", r.script.doubt(), r.script.name, what)
	}
	r.rest = nil
}

func (r *reply) next() any {
	if len(r.rest) == 0 {
		r.fail("it is too short")
		return nil
	}
	v := r.rest[0]
	r.rest = r.rest[1:]
	return v
}

func (r *reply) text() string {
	v, ok := r.next().(string)
	if !ok {
		r.fail("no text where there should be one")
	}
	return v
}

func (r *reply) number() int64 {
	v, ok := r.next().(int64)
	if !ok {
		r.fail("no number where there should be one")
	}
	return v
}

func (r *reply) flag() bool { return r.number() != 0 }

// moment reads milliseconds since 1970.
func (r *reply) moment() time.Time { return time.UnixMilli(r.number()).UTC() }

// list reads a list, to be read like an answer of its own.
func (r *reply) list() *reply {
	v, ok := r.next().([]any)
	if !ok {
		r.fail("no list where there should be one")
	}
	return &reply{rest: v, script: r.script, shard: r.shard}
}

// each reads a list of lists.
func (r *reply) each(read func(*reply)) {
	for l := r.list(); len(l.rest) > 0 && r.err == nil; {
		item := l.list()
		read(item)
		r.join(l)
		r.join(item)
	}
}

// join takes over the failure of a list.
func (r *reply) join(l *reply) {
	if r.err == nil {
		r.err = l.err
	}
}

func (r *reply) json(into any) {
	text := r.text()
	if r.err != nil {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		r.fail(err.Error())
	}
}

func (r *reply) workload() spiffeid.ID {
	id, err := spiffeid.FromString(r.text())
	if err != nil && r.err == nil {
		r.fail(err.Error())
	}
	return id
}

// taskStatic is what never changes in a task and no script looks at.
type taskStatic struct {
	Name      string   `json:"n"`
	Purpose   string   `json:"p"`
	Audiences []string `json:"a,omitempty"`
	Scopes    []string `json:"s,omitempty"`
}

// grantStatic is the same of a grant.
type grantStatic struct {
	Scopes     []string          `json:"s,omitempty"`
	Binding    broker.Binding    `json:"b,omitempty"`
	Thumbprint string            `json:"t,omitempty"`
	Decision   broker.DecisionID `json:"d,omitempty"`
}

// lockStatic is the same of a lock.
type lockStatic struct {
	ID       broker.LockID   `json:"id"`
	Selector broker.Selector `json:"selector"`
	Reason   string          `json:"reason"`
	Actor    string          `json:"actor"`
}

// encode never fails: there is nothing but text in what it is given.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// task reads a task as of now. A script says how and when the task ends if nothing else happens, so
// that tasks of several answers can be shown as of one moment.
func (r *reply) task(now time.Time) broker.Task {
	l := r.list()
	t := l.taskFields(now)
	r.join(l)
	return t
}

func (r *reply) taskFields(now time.Time) broker.Task {
	t := broker.Task{ID: broker.TaskID(r.text()), Workload: r.workload()}
	var static taskStatic
	r.json(&static)
	t.Name, t.Purpose = static.Name, static.Purpose
	t.Ceiling = broker.Ceiling{Audiences: static.Audiences, Scopes: static.Scopes}
	t.Begun = r.moment()
	t.Lease = time.Duration(r.number()) * time.Millisecond
	t.LeaseEnd, t.Deadline = r.moment(), r.moment()
	for id := range strings.FieldsSeq(r.text()) {
		t.Path = append(t.Path, broker.TaskID(id))
	}
	if len(t.Path) == 0 {
		r.fail("a task without a path")
	}
	state, cause, at := broker.State(r.text()), broker.Cause(r.text()), r.moment()
	t.State = broker.Active
	if !now.Before(at) {
		t.State, t.Cause, t.Ended = state, cause, at
	}
	return t
}

// grant reads a grant, which is nothing when the list is empty.
func (r *reply) grant() broker.Grant {
	l := r.list()
	if len(l.rest) == 0 {
		r.join(l)
		return broker.Grant{}
	}
	g := l.grantFields()
	r.join(l)
	return g
}

func (r *reply) grantFields() broker.Grant {
	g := broker.Grant{ID: broker.GrantID(r.text()), Task: broker.TaskID(r.text()), Workload: r.workload(), Audience: r.text()}
	var static grantStatic
	r.json(&static)
	g.Scopes, g.Binding, g.Thumbprint, g.Decision = static.Scopes, static.Binding, static.Thumbprint, static.Decision
	g.Issued, g.Expires = r.moment(), r.moment()
	g.Epoch, g.Number = uint64(r.number()), uint64(r.number())
	g.Revoked = r.flag()
	return g
}

// entry reads an entry of the feed. One of no kind is a change that only brokers hear of.
func (r *reply) entry() (broker.Entry, bool) {
	e := broker.Entry{Shard: r.shard, Number: uint64(r.number())}
	kind, target := broker.DenialKind(r.text()), r.text()
	e.Until = r.moment()
	addressed, audiences := r.flag(), r.text()
	if addressed {
		e.Audiences = strings.Fields(audiences)
	}
	e.Denial.Kind = kind
	switch kind {
	case broker.DenyTask:
		e.Denial.Task = broker.TaskID(target)
	case broker.DenyGrant:
		e.Denial.Grant = broker.GrantID(target)
	case broker.DenyKey:
		e.Denial.Key = target
	case broker.DenySelector:
		if err := json.Unmarshal([]byte(target), &e.Denial.Selector); err != nil {
			r.fail(err.Error())
		}
	case broker.DenyAll:
	case "":
		return e, false
	default:
		r.fail("an entry of the kind " + string(kind))
	}
	return e, true
}
