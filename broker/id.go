package broker

import (
	"crypto/rand"
	"strings"
	"time"
)

// IDs are opaque to everyone but the broker: a prefix that says what the thing is, for tasks and
// grants two digits that say in which shard of the store it lives, and 26 base32 characters, which
// are 130 random bits where nothing else is said. They are never used again.
type (
	// TaskID names a task: "tsk_", two digits, 26 characters. The first 9 say when it was made, and 17 are random.
	TaskID string
	// GrantID names a grant, and is the jti of its token: "gnt_", two digits, and 26 characters as a task's.
	GrantID string
	// LockID names a lock: "lck_" and 26 characters.
	LockID string
	// DelegationID names a delegation: "dlg_" and 26 characters.
	DelegationID string
	// RevocationID names a revocation: "rev_" and 26 characters.
	RevocationID string
	// EventID names an audit event: "evt_" and 26 characters. Of the end of a task or grant the first 14 say which process was
	// to record it, and when, and 12 are random; of a task's begin they are those of the task.
	EventID string
	// DecisionID names a policy decision: "dcs_" and 26 characters.
	DecisionID string
	// StreamID names one stream of one client: "str_" and 26 characters.
	StreamID string
)

const (
	randomChars = 26
	timeChars   = 9 // milliseconds since 1970, until the year 3084
	shardDigits = 2

	eventPrefix = "evt_"

	// alphabet is that of RFC 4648, section 6, in small letters, and in the order of ASCII.
	alphabet = "234567abcdefghijklmnopqrstuvwxyz"

	// MaxShards is the number of shards that two digits can tell apart.
	MaxShards = 100
)

// NewTaskID makes the ID of a new task in a shard.
func NewTaskID(shard int) TaskID { return TaskID(newSharded("tsk_", shard)) }

// NewGrantID makes the ID of a new grant in a shard.
func NewGrantID(shard int) GrantID { return GrantID(newSharded("gnt_", shard)) }

// newSharded makes an ID that comes after those made before, by this machine's clock: a store that keeps them
// in order has what is new in one place, and lists what is there the oldest first. Nothing depends on it.
func newSharded(prefix string, shard int) string {
	b := []byte(prefix + "00" + randomText())
	b[len(prefix)] += byte(shard / 10)
	b[len(prefix)+1] += byte(shard % 10)
	when := b[len(prefix)+shardDigits:][:timeChars]
	for i, ms := timeChars-1, time.Now().UnixMilli(); i >= 0; i, ms = i-1, ms>>5 {
		when[i] = alphabet[ms&31]
	}
	return string(b)
}

// NewLockID makes the ID of a new lock.
func NewLockID() LockID { return LockID("lck_" + randomText()) }

// NewDelegationID makes the ID of a new delegation.
func NewDelegationID() DelegationID { return DelegationID("dlg_" + randomText()) }

// NewRevocationID makes the ID of a new revocation.
func NewRevocationID() RevocationID { return RevocationID("rev_" + randomText()) }

// NewEventID makes the ID of a new audit event.
func NewEventID() EventID { return EventID(eventPrefix + randomText()) }

// begunEvent is the ID of the event that a task has begun, which is the same whoever records it.
func begunEvent(id TaskID) EventID {
	return EventID(eventPrefix + string(id[len(id)-randomChars:]))
}

// NewDecisionID makes the ID of a new decision.
func NewDecisionID() DecisionID { return DecisionID("dcs_" + randomText()) }

// NewStreamID makes the ID of a new stream.
func NewStreamID() StreamID { return StreamID("str_" + randomText()) }

func randomText() string {
	var b [randomChars]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return string(b[:])
}

// ParseTaskID accepts exactly what NewTaskID makes; anything else is ErrNotFound, since there is no
// task with such a name.
func ParseTaskID(s string) (TaskID, error) {
	if err := parseSharded("tsk_", s); err != nil {
		return "", err
	}
	return TaskID(s), nil
}

// ParseGrantID accepts exactly what NewGrantID makes; anything else is ErrNotFound.
func ParseGrantID(s string) (GrantID, error) {
	if err := parseSharded("gnt_", s); err != nil {
		return "", err
	}
	return GrantID(s), nil
}

// Shard is the shard that the task lives in, with its whole tree.
func (id TaskID) Shard() int { return shardOf(string(id)) }

// Shard is the shard that the grant lives in, which is that of its task.
func (id GrantID) Shard() int { return shardOf(string(id)) }

func shardOf(id string) int {
	if len(id) < 4+shardDigits {
		return 0
	}
	return int(id[4]-'0')*10 + int(id[5]-'0')
}

func parseSharded(prefix, s string) error {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) != shardDigits+randomChars {
		return ErrNotFound
	}
	for i, c := range []byte(rest) {
		digit := c >= '0' && c <= '9'
		letter := c >= 'a' && c <= 'z' || c >= '2' && c <= '7'
		if i < shardDigits && !digit || i >= shardDigits && !letter {
			return ErrNotFound
		}
	}
	return nil
}
