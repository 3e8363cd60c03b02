package redis

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/errandhq/errand/broker"
)

// What is stored, and no script looks at, is packed strings: each with its length in front.
func pack(fields ...string) string {
	var b []byte
	for _, f := range fields {
		b = binary.AppendUvarint(b, uint64(len(f)))
		b = append(b, f...)
	}
	return string(b)
}

// unpack returns the strings that pack was given.
func unpack(text string) (fields []string, ok bool) {
	rest := []byte(text)
	for len(rest) > 0 {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			return nil, false
		}
		fields = append(fields, string(rest[size:size+int(n)]))
		rest = rest[size+int(n):]
	}
	return fields, true
}

// bareLength is the length of an ID without its prefix and shard, as Redis has it.
const bareLength = 26

// bareTask is the ID of a task as Redis has it. There is no task with an ID that is none.
func bareTask(id broker.TaskID) (string, bool) {
	_, err := broker.ParseTaskID(string(id))
	if err != nil {
		return "", false
	}
	return string(id[len(id)-bareLength:]), true
}

func bareGrant(id broker.GrantID) (string, bool) {
	_, err := broker.ParseGrantID(string(id))
	if err != nil {
		return "", false
	}
	return string(id[len(id)-bareLength:]), true
}

func (r *reply) taskID(bare string) broker.TaskID {
	return broker.TaskID(fmt.Sprintf("tsk_%02d%s", r.shard, bare))
}

func (r *reply) grantID(bare string) broker.GrantID {
	return broker.GrantID(fmt.Sprintf("gnt_%02d%s", r.shard, bare))
}

func packTask(b *broker.Beginning) string {
	return pack(b.Name, b.Purpose, pack(b.Ceiling.Audiences...), pack(b.Ceiling.Scopes...))
}

// readTask reads what packTask has packed. A ceiling that cannot be read is empty: nothing is below it.
func readTask(f []string) (name, purpose string, ceiling broker.Ceiling) {
	audiences, _ := unpack(f[2])
	scopes, _ := unpack(f[3])
	return f[0], f[1], broker.Ceiling{Audiences: audiences, Scopes: scopes}
}

const decisionPrefix = "dcs_"

func packGrant(a broker.Asked) string {
	fields := append(make([]string, 0, 3+len(a.Scopes)), strconv.Itoa(int(a.Binding)), packThumbprint(a.Thumbprint), packDecision(a.Decision))
	return pack(append(fields, a.Scopes...)...)
}

func readGrant(f []string, g *broker.Grant) {
	binding, _ := strconv.Atoi(f[0]) // what cannot be read is the strictest
	g.Binding, g.Thumbprint, g.Decision = broker.Binding(binding), readThumbprint(f[1]), readDecision(f[2])
	g.Scopes = broker.Scopes(f[3:])
}

// A thumbprint is 32 bytes in base64url, and is kept as those bytes after a zero; anything else is kept
// as it is.
func packThumbprint(text string) string {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 32 {
		return text
	}
	return "\x00" + string(raw)
}

func readThumbprint(packed string) string {
	raw, ok := strings.CutPrefix(packed, "\x00")
	if !ok {
		return packed
	}
	return base64.RawURLEncoding.EncodeToString([]byte(raw))
}

func packDecision(id broker.DecisionID) string {
	if bare, ok := strings.CutPrefix(string(id), decisionPrefix); ok {
		return bare
	}
	return "\x00" + string(id)
}

func readDecision(packed string) broker.DecisionID {
	if whole, ok := strings.CutPrefix(packed, "\x00"); ok {
		return broker.DecisionID(whole)
	}
	return broker.DecisionID(decisionPrefix + packed)
}

func packSelector(s broker.Selector) string { return pack(s.Subject, s.Audience, s.Scope) }

func readSelector(packed string) (broker.Selector, bool) {
	f, ok := unpack(packed)
	if !ok || len(f) != 3 {
		return broker.Selector{}, false
	}
	return broker.Selector{Subject: f[0], Audience: f[1], Scope: f[2]}, true
}

func packLock(l broker.Lock) string {
	return pack(string(l.ID), l.Reason, l.Actor, l.Selector.Subject, l.Selector.Audience, l.Selector.Scope)
}

func readLock(f []string) broker.Lock {
	return broker.Lock{
		ID: broker.LockID(f[0]), Reason: f[1], Actor: f[2],
		Selector: broker.Selector{Subject: f[3], Audience: f[4], Scope: f[5]},
	}
}
