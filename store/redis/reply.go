package redis

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/tinylib/msgp/msgp"

	"github.com/errandhq/errand/broker"
)

// reply is a script's answer: a MessagePack array of strings, integers and arrays, read from the front. Its
// first failure stays in err, which is one of the contract's.
type reply struct {
	status string  // "ok", or why not
	left   uint32  // how many values have not been read
	in     *[]byte // where they stand; an answer and the lists in it share it
	err    error
	spoilt *spoilt // the first record in it that nobody can read
	script *script
	shard  int
	epoch  uint64 // that the call was for
}

// answer takes what the script said of each call of a command.
func (s *Store) answer(calls []call, cmd command, replies []reply) {
	text, err := cmd.Text()
	answers, broken := s.answers([]byte(text), calls[cmd.calls[0]].script.many, len(cmd.calls))
	for n, i := range cmd.calls {
		c := &calls[i]
		r := reply{script: c.script, shard: c.shard, epoch: c.epoch}
		switch {
		case err != nil:
			r.err = c.script.failed(err)
		case broken != nil:
			r.fail(broken.Error())
		case n >= len(answers):
			r.fail("it has too few answers")
		default:
			r.in, r.left = &answers[n], 1
			r = *r.list()
			r.head(c)
		}
		replies[i] = r
	}
}

// answers cuts what a script says into its answers, and reports a record that nobody can read.
func (s *Store) answers(text []byte, many bool, want int) ([][]byte, error) {
	if !many {
		first := text
		if n, rest, err := msgp.ReadArrayHeaderBytes(text); err == nil && n == 2 && msgp.NextType(rest) == msgp.ArrayType {
			parts, err := cut(rest, 2)
			if err != nil {
				return nil, err
			}
			s.unreadable.report(s.logger, parts[1])
			first = parts[0]
		}
		return [][]byte{first}, nil
	}
	n, rest, err := msgp.ReadArrayHeaderBytes(text)
	if err != nil {
		return nil, err
	}
	if n != uint32(want) && n != uint32(want)+1 {
		return nil, fmt.Errorf("it has %d answers instead of %d", n, want)
	}
	parts, err := cut(rest, int(n))
	if err == nil && len(parts) > want {
		s.unreadable.report(s.logger, parts[want])
	}
	return parts, err
}

// cut returns so many values, one by one.
func cut(text []byte, n int) (parts [][]byte, err error) {
	for range n {
		rest, err := msgp.Skip(text)
		if err != nil {
			return nil, err
		}
		parts = append(parts, text[:len(text)-len(rest)])
		text = rest
	}
	return parts, nil
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
	"NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "NOREPLICAS",
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
		if redis.HasErrorPrefix(err, prefix) && !strings.Contains(err.Error(), "script: "+sc.sum) { // it was refused something half way
			why = broker.ErrUnavailable
		}
	}
	return fmt.Errorf("%w: redis, script %s: %w", why, sc.name, err)
}

func (r *reply) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: script %s gave an answer that cannot be read: %s", r.script.doubt(), r.script.name, what)
	}
	r.left = 0
}

// next is the next value, and what comes after it.
func next[T any](r *reply, what string, read func([]byte) (T, []byte, error)) (value T) {
	if r.left == 0 {
		r.fail("it is too short")
		return value
	}
	value, rest, err := read(*r.in)
	if err != nil {
		r.fail("no " + what + " where there should be one")
		return value
	}
	*r.in = rest
	r.left--
	return value
}

func (r *reply) text() string { return next(r, "text", msgp.ReadStringBytes) }

func (r *reply) number() int64 { return next(r, "number", msgp.ReadInt64Bytes) }

func (r *reply) flag() bool { return r.number() != 0 }

// moment reads milliseconds since 1970, and 0 as no moment.
func (r *reply) moment() time.Time {
	ms := r.number()
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// list reads a list, to be read like an answer of its own, and then to be joined before anything else is read.
func (r *reply) list() *reply {
	n := next(r, "list", msgp.ReadArrayHeaderBytes)
	return &reply{left: n, in: r.in, err: r.err, script: r.script, shard: r.shard, epoch: r.epoch}
}

// each reads a list of lists.
func (r *reply) each(read func(*reply)) {
	l := r.list()
	for l.left > 0 && l.err == nil {
		item := l.list()
		read(item)
		l.join(item)
	}
	r.join(l)
}

// join goes on after a list, and takes over its failure.
func (r *reply) join(l *reply) {
	for ; l.left > 0 && l.err == nil; l.left-- {
		rest, err := msgp.Skip(*l.in)
		if err != nil {
			l.fail(err.Error())
			break
		}
		*l.in = rest
	}
	if r.err == nil && l.err != nil {
		r.err, r.left = l.err, 0
	}
	r.spoilt = cmp.Or(r.spoilt, l.spoilt)
}

// spoil notes that a record in the answer cannot be read. The answer can: reading goes on.
func (r *reply) spoil(grant bool, id string) {
	r.spoilt = cmp.Or(r.spoilt, &spoilt{grant, id})
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
	workload, err := spiffeid.FromString(r.text())
	t := broker.Task{ID: r.taskID(id), Workload: workload}
	if fields, ok := unpack(r.text()); err != nil || !ok || len(fields) < 4 || readTask(fields, &t) != nil {
		r.spoil(false, id)
	}
	t.Begun = r.moment()
	t.Lease = time.Duration(r.number()) * time.Millisecond
	t.LeaseEnd, t.Deadline = r.moment(), r.moment()
	above, ok := r.path()
	if !ok {
		r.spoil(false, id)
	}
	t.Path = append(above, t.ID)
	t.Holder = int(r.number())
	state, cause, at := broker.State(r.text()), broker.Cause(r.text()), r.moment()
	t.State = broker.Active
	if !now.Before(at) {
		t.State, t.Cause, t.Ended = state, cause, at
	}
	if r.left > 0 {
		t.Note, t.Noted = r.text(), r.moment()
	}
	if r.left > 0 {
		t.Presence, t.Stream = true, broker.StreamID(r.text())
	}
	if id == "" {
		r.fail("a task without an ID")
	}
	return t
}

// path reads the IDs of the tasks above one, if that is what they are.
func (r *reply) path() (path []broker.TaskID, ok bool) {
	above := r.text()
	for ; len(above) >= bareLength; above = above[bareLength:] {
		path = append(path, r.taskID(above[:bareLength]))
	}
	return path, above == ""
}

// grant reads a grant in a workload's task, which is nothing when the list is empty.
func (r *reply) grant(task broker.Task) broker.Grant {
	l := r.list()
	if l.left == 0 {
		r.join(l)
		return broker.Grant{}
	}
	g := l.grantFields(task)
	r.join(l)
	return g
}

func (r *reply) grantFields(task broker.Task) broker.Grant {
	id := r.text()
	g := broker.Grant{ID: r.grantID(id), Task: r.taskID(r.text()), Workload: task.Workload, Audience: r.text()}
	if fields, ok := unpack(r.text()); ok && len(fields) >= 3 {
		readGrant(fields, &g)
	} else {
		r.spoil(true, id)
	}
	g.Issued, g.Expires = r.moment(), r.moment()
	g.Epoch, g.Number = uint64(r.number()), uint64(r.number())
	g.Revoked = r.flag()
	if g.Task != task.ID {
		r.fail("a grant of another task")
	}
	return g
}

// brokenDenial is the error about a record of which nobody knows what it denies.
func brokenDenial(key, id string) error {
	return fmt.Errorf("%w: the record %.100q in %s cannot be read; delete it, and deny again what it denied, or delete meta beside it as well if nobody knows that, so that a new epoch begins and all tokens die",
		broker.ErrUnavailable, id, key)
}

// entry reads an entry of the feed, or a denial of the control list, of a key. One of no kind is a change that only brokers
// hear of.
func (r *reply) entry(key string) (broker.Entry, bool) {
	e := broker.Entry{Shard: r.shard, Number: uint64(r.number())}
	kind, target := broker.DenialKind(r.text()), r.text()
	e.Until = r.moment()
	addressed, audiences := r.flag(), r.text()
	if addressed {
		e.Audiences = strings.Fields(audiences)
	}
	e.Denial.Kind = kind
	ok := true
	switch kind {
	case broker.DenyTask:
		e.Denial.Task, ok = r.taskID(target), len(target) == bareLength
	case broker.DenyGrant:
		e.Denial.Grant, ok = r.grantID(target), len(target) == bareLength
	case broker.DenyKey:
		e.Denial.Key = target
	case broker.DenySelector:
		e.Denial.Selector, ok = readSelector(target)
	case broker.DenyAll:
	default:
		ok = kind == ""
	}
	if !ok && r.err == nil {
		r.err, r.left = brokenDenial(key, fmt.Sprintf("%d-0", e.Number)), 0
	}
	return e, kind != ""
}
