package redis

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

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
	for len(text) > 0 {
		n, size := binary.Uvarint([]byte(text[:min(len(text), binary.MaxVarintLen64)]))
		if size <= 0 || n > uint64(len(text)-size) {
			return nil, false
		}
		end := size + int(n)
		fields, text = append(fields, text[size:end]), text[end:]
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
	return broker.TaskID("tsk_" + twoDigits(r.shard) + bare)
}

func (r *reply) grantID(bare string) broker.GrantID {
	return broker.GrantID("gnt_" + twoDigits(r.shard) + bare)
}

// twoDigits is how an ID has its shard, of which there are less than a hundred.
func twoDigits(shard int) string { return string([]byte{'0' + byte(shard/10), '0' + byte(shard%10)}) }

// packTask adds what a task says about itself only when there is something.
func packTask(b *broker.Beginning) string {
	fields := []string{b.Name, b.Purpose, pack(b.Ceiling.Audiences...), pack(b.Ceiling.Scopes...)}
	if details := b.Ceiling.Details; len(details) > 0 || !b.Attributes.IsZero() || len(b.Delegators) > 0 {
		var labels []string
		for _, key := range slices.Sorted(maps.Keys(b.Labels)) {
			labels = append(labels, key, b.Labels[key])
		}
		fields = append(fields, pack(packDetails(nil, details)...), b.Ticket, b.Ref.Kind, b.Ref.ID, b.Ref.URL, pack(labels...), string(b.Context))
	}
	if len(b.Delegators) > 0 {
		var delegators []string
		for _, id := range b.Delegators {
			delegators = append(delegators, id.String())
		}
		fields = append(fields, pack(delegators...))
	}
	return pack(fields...)
}

// readTask reads what packTask has packed. A ceiling that cannot be read is empty: nothing is below it.
// Delegators that cannot be read are an error: a denial could miss the task.
func readTask(f []string, t *broker.Task) error {
	audiences, _ := unpack(f[2])
	scopes, _ := unpack(f[3])
	t.Name, t.Purpose, t.Ceiling = f[0], f[1], broker.Ceiling{Audiences: audiences, Scopes: scopes}
	if len(f) < 11 {
		return nil
	}
	details, _ := unpack(f[4])
	t.Ceiling.Details = readDetails(details)
	t.Ticket, t.Ref, t.Context = f[5], broker.TaskRef{Kind: f[6], ID: f[7], URL: f[8]}, broker.Object(f[10])
	labels, _ := unpack(f[9])
	for i := 0; i+1 < len(labels); i += 2 {
		if t.Labels == nil {
			t.Labels = map[string]string{}
		}
		t.Labels[labels[i]] = labels[i+1]
	}
	if len(f) < 12 {
		return nil
	}
	return readDelegators(f[11], t)
}

func readDelegators(packed string, t *broker.Task) error {
	texts, ok := unpack(packed)
	if !ok {
		return errors.New("delegators that are none")
	}
	for _, text := range texts {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return err
		}
		t.Delegators = append(t.Delegators, id)
	}
	return nil
}

func packDetails(fields []string, details broker.Details) []string {
	for _, detail := range details {
		fields = append(fields, string(detail))
	}
	return fields
}

func readDetails(fields []string) broker.Details {
	var details broker.Details
	for _, text := range fields {
		details = append(details, broker.Object(text))
	}
	return details
}

const decisionPrefix = "dcs_"

// packGrant puts details behind the scopes, and "", which is no scope, in between.
func packGrant(a broker.Asked) string {
	fields := append(make([]string, 0, 4+len(a.Scopes)), strconv.Itoa(int(a.Binding)), packThumbprint(a.Thumbprint), packDecision(a.Decision))
	fields = append(fields, a.Scopes...)
	if len(a.Details) > 0 {
		fields = packDetails(append(fields, ""), a.Details)
	}
	return pack(fields...)
}

func readGrant(f []string, g *broker.Grant) {
	binding, _ := strconv.Atoi(f[0]) // what cannot be read is the strictest
	g.Binding, g.Thumbprint, g.Decision = broker.Binding(binding), readThumbprint(f[1]), readDecision(f[2])
	g.Scopes = broker.Scopes(f[3:])
	if end := slices.Index(f[3:], ""); end >= 0 {
		g.Scopes, g.Details = g.Scopes[:end:end], readDetails(f[3+end+1:])
	}
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
