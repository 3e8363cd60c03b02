package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// port is what keys asks for.
var _ interface {
	Read(context.Context) ([]byte, uint64, time.Time, error)
	Write(context.Context, []byte, uint64) (bool, error)
} = (*redis.Record)(nil)

func TestRecord(t *testing.T) {
	s := start(t)
	store, peer := s.open(t, redis.Config{Shards: 4}.Patient()), s.open(t, redis.Config{Shards: 4}.Patient())
	r := store.Record("keys")
	before := time.Now()
	if value, version, now, err := r.Read(t.Context()); err != nil || value != nil || version != 0 || now.Sub(before).Abs() > time.Minute {
		t.Fatalf("of nothing: %q at %d, %s, error %v", value, version, now, err)
	}
	if got := r.String(); got != "the key errand:{p00}:record:keys in Redis" {
		t.Errorf("it is %s", got)
	}
	sealed := []byte("\x00sealed\xff\r\n")
	write := func(r *redis.Record, value []byte, version uint64, want bool) {
		t.Helper()
		if swapped, err := r.Write(t.Context(), value, version); err != nil || swapped != want {
			t.Fatalf("Write at %d: %v, error %v; want %v", version, swapped, err, want)
		}
	}
	read := func(r *redis.Record, want []byte, at uint64) {
		t.Helper()
		if value, version, _, err := r.Read(t.Context()); err != nil || !bytes.Equal(value, want) || version != at {
			t.Fatalf("got %d bytes at %d, error %v; want %d at %d", len(value), version, err, len(want), at)
		}
	}
	write(r, sealed, 1, false)
	write(r, sealed, 0, true)
	write(peer.Record("keys"), []byte("late"), 0, false)
	read(peer.Record("keys"), sealed, 1)
	write(peer.Record("keys"), nil, 1, true)
	read(r, nil, 2)
	if n, err := s.client.Exists(t.Context(), "errand:{p00}:record:keys").Result(); err != nil || n != 1 {
		t.Errorf("it is not where it says: %d, %v", n, err)
	}
	write(r, bytes.Repeat([]byte("x"), redis.MaxRecord), 2, true)
	read(peer.Record("keys"), bytes.Repeat([]byte("x"), redis.MaxRecord), 3)
	if swapped, err := r.Write(t.Context(), make([]byte, redis.MaxRecord+1), 3); err == nil || swapped {
		t.Errorf("one byte more: %v, %v; want an error", swapped, err)
	}
	read(store.Record("other"), nil, 0)

	// A new epoch keeps it, and a replica that does not know the new one yet reads it.
	for _, key := range s.keys("errand:{p02}:*") {
		s.client.Del(t.Context(), key)
	}
	if _, err := first(t.Context(), peer, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
		t.Fatalf("Watch: %v; want ErrEpoch", err)
	}
	read(r, bytes.Repeat([]byte("x"), redis.MaxRecord), 3)
	write(r, []byte("again"), 3, true)
	s.Kill()
	if _, _, _, err := r.Read(t.Context()); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Read without a server: %v; want ErrUnavailable", err)
	}
}

// TestRecordRace lets many write at once: exactly one does at each version.
func TestRecordRace(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	var swaps atomic.Int64
	for i, err := range together(16, func(i int) error {
		r := store.Record("keys")
		for swapped := false; !swapped; {
			_, version, _, err := r.Read(t.Context())
			if err != nil {
				return err
			}
			if swapped, err = r.Write(t.Context(), fmt.Append(nil, i), version); err != nil {
				return err
			}
		}
		swaps.Add(1)
		return nil
	}) {
		if err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if _, version, _, err := store.Record("keys").Read(t.Context()); err != nil || version != uint64(swaps.Load()) {
		t.Errorf("at version %d after %d writes, error %v", version, swaps.Load(), err)
	}
}
