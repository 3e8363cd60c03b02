package redis

import (
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
	epoch  uint64 // that the call was for
}

// answer takes what the script said of each call of a command.
func (s *Store) answer(calls []call, cmd command, replies []reply) {
	values, err := cmd.Slice()
	many := calls[cmd.calls[0]].script.many
	if !many {
		values = s.single(values)
	} else if len(values) == len(cmd.calls)+1 {
		s.unreadable.report(s.logger, values[len(cmd.calls)])
	}
	for n, i := range cmd.calls {
		c := &calls[i]
		r := reply{script: c.script, shard: c.shard, epoch: c.epoch}
		switch {
		case err != nil:
			r.err = c.script.failed(err)
		case n >= len(values):
			r.fail("it has too few answers")
		default:
			r.rest, _ = values[n].([]any)
			r.head(c)
		}
		replies[i] = r
	}
}

// single returns the one answer of a script that makes one call, in a list.
func (s *Store) single(values []any) []any {
	if len(values) == 2 {
		if inner, ok := values[0].([]any); ok { // and with it, a record that nobody can read
			s.unreadable.report(s.logger, values[1])
			values = inner
		}
	}
	return []any{values}
}

// head reads the beginning of an answer: its status, and the echo.
func (r *reply) head(c *call) {
	r.status = r.text()
	echo := r.text()
	switch {
	case r.err != nil:
	case echo != c.echo:
		r.err = fmt.Errorf("%w: script %s answered about %q instead of %q", c.script.doubt(), c.script.name, echo, c.echo)
	case r.status == "failed":
		r.err = fmt.Errorf("%w: redis, script %s: %s", c.script.doubt(), c.script.name, r.text())
	case r.status == "epoch":
		r.err = fmt.Errorf("%w: shard %d is not of the known data set; it has lost data, and the feed must be followed anew: %w",
			broker.ErrUnavailable, c.shard, broker.ErrEpoch)
	}
}

// doubt is what an answer that makes no sense stands for.
func (sc *script) doubt() error {
	if sc.writes {
		return broker.ErrUnconfirmed
	}
	return broker.ErrUnavailable
}

// refusals begin the errors of a server that has done nothing. A redirection is none: the client may
// have followed it, and leaves it in the command when the answer to that is lost.
var refusals = [...]string{
	"NOSCRIPT", "OOM", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "CROSSSLOT", "BUSY",
	"NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "NOREPLICAS", "ERR max number of clients",
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

// moment reads milliseconds since 1970, and 0 as no moment.
func (r *reply) moment() time.Time {
	ms := r.number()
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// list reads a list, to be read like an answer of its own.
func (r *reply) list() *reply {
	v, ok := r.next().([]any)
	if !ok {
		r.fail("no list where there should be one")
	}
	return &reply{rest: v, script: r.script, shard: r.shard, epoch: r.epoch}
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

// strings reads what pack has packed, which has so many strings at least.
func (r *reply) strings(least int) []string {
	fields, ok := unpack(r.text())
	if !ok || len(fields) < least {
		r.fail("a pack of strings that is none")
		return make([]string, least)
	}
	return fields
}

func (r *reply) workload() spiffeid.ID {
	id, err := spiffeid.FromString(r.text())
	if err != nil && r.err == nil {
		r.fail(err.Error())
	}
	return id
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
	id := r.text()
	t := broker.Task{ID: r.taskID(id), Workload: r.workload()}
	if err := readTask(r.strings(4), &t); err != nil {
		r.fail(err.Error())
	}
	t.Begun = r.moment()
	t.Lease = time.Duration(r.number()) * time.Millisecond
	t.LeaseEnd, t.Deadline = r.moment(), r.moment()
	t.Path = append(r.path(), t.ID)
	t.Holder = int(r.number())
	state, cause, at := broker.State(r.text()), broker.Cause(r.text()), r.moment()
	t.State = broker.Active
	if !now.Before(at) {
		t.State, t.Cause, t.Ended = state, cause, at
	}
	if len(r.rest) > 0 {
		t.Note, t.Noted = r.text(), r.moment()
	}
	if len(r.rest) > 0 {
		t.Presence, t.Stream = true, broker.StreamID(r.text())
	}
	if id == "" {
		r.fail("a task without an ID")
	}
	return t
}

// path reads the IDs of the tasks above one.
func (r *reply) path() []broker.TaskID {
	var path []broker.TaskID
	above := r.text()
	for ; len(above) >= bareLength; above = above[bareLength:] {
		path = append(path, r.taskID(above[:bareLength]))
	}
	if above != "" {
		r.fail("a path that is none")
	}
	return path
}

// grant reads a grant in a workload's task, which is nothing when the list is empty.
func (r *reply) grant(task broker.Task) broker.Grant {
	l := r.list()
	if len(l.rest) == 0 {
		r.join(l)
		return broker.Grant{}
	}
	g := l.grantFields(task)
	r.join(l)
	return g
}

func (r *reply) grantFields(task broker.Task) broker.Grant {
	g := broker.Grant{ID: r.grantID(r.text()), Task: r.taskID(r.text()), Workload: task.Workload, Audience: r.text()}
	readGrant(r.strings(3), &g)
	g.Issued, g.Expires = r.moment(), r.moment()
	g.Epoch, g.Number = uint64(r.number()), uint64(r.number())
	g.Revoked = r.flag()
	if g.Task != task.ID {
		r.fail("a grant of another task")
	}
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
		e.Denial.Task = r.taskID(target)
	case broker.DenyGrant:
		e.Denial.Grant = r.grantID(target)
	case broker.DenyKey:
		e.Denial.Key = target
	case broker.DenySelector:
		var ok bool
		if e.Denial.Selector, ok = readSelector(target); !ok {
			r.fail("a selector that is none")
		}
	case broker.DenyAll:
	case "":
		return e, false
	default:
		r.fail("an entry of the kind " + string(kind))
	}
	return e, true
}
