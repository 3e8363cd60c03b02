package redis

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// MaxRecord bounds the value of a Record, in bytes.
const MaxRecord = 64 << 10

// Record is a small named value that all replicas share. It is the deployment's, not the epoch's: a new
// epoch keeps it, and only data that are lost lose it. Nothing lets it expire.
type Record struct {
	store     *Store
	name, key string
}

// Record returns the record of a name, whether or not anybody has written it.
func (s *Store) Record(name string) *Record {
	return &Record{store: s, name: name, key: keyOf(s.prefix, 0, "record:"+name)}
}

// String says where the record is.
func (r *Record) String() string { return "the key " + r.key + " in Redis" }

// Read returns the value and its version; nil and 0 when there is none. now is the store's time.
func (r *Record) Read(ctx context.Context) (value []byte, version uint64, now time.Time, err error) {
	value, version, now, _, err = r.call(ctx)
	return value, version, now, err
}

// Write writes the next version if the record still is at this one, and reports whether it was. It
// works when memory is full. After broker.ErrUnconfirmed it may have been written: read it again.
func (r *Record) Write(ctx context.Context, value []byte, version uint64) (swapped bool, err error) {
	if len(value) > MaxRecord {
		return false, fmt.Errorf("redis: the record %s would have %d bytes; it may have %d", r.name, len(value), MaxRecord)
	}
	_, _, _, swapped, err = r.call(ctx, strconv.FormatUint(version, 10), value)
	return swapped, err
}

func (r *Record) call(ctx context.Context, args ...any) (value []byte, version uint64, now time.Time, swapped bool, err error) {
	a := r.store.send(ctx, []call{{
		script: r.store.scripts.record, echo: r.name, keys: []string{r.key}, args: args,
	}})[0]
	if a.err == nil && a.status != "ok" {
		a.err = a.refusal()
	}
	now, version = a.moment(), uint64(a.number())
	text := a.text()
	swapped = a.flag()
	if a.err != nil {
		return nil, 0, time.Time{}, false, a.err
	}
	if version > 0 && len(args) == 0 {
		value = []byte(text)
	}
	return value, version, now, swapped, nil
}
