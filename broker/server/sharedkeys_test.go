package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// sharedRecord is a record in memory; full makes every write fail, and away everything.
type sharedRecord struct {
	mu      sync.Mutex
	value   []byte
	version uint64
	full    bool
	away    bool
}

var errFull, errAway = errors.New("disk full"), errors.New("nobody answers")

func (r *sharedRecord) leave(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

func (r *sharedRecord) fill(full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.full = full
}

func (r *sharedRecord) Read(context.Context) ([]byte, uint64, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return nil, 0, time.Time{}, errAway
	}
	return bytes.Clone(r.value), r.version, time.Now(), nil
}

func (r *sharedRecord) Write(_ context.Context, value []byte, version uint64) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return false, errAway
	}
	if r.full {
		return false, errFull
	}
	if r.version != version {
		return false, nil
	}
	r.value, r.version = bytes.Clone(value), version+1
	return true, nil
}

// pair starts two replicas on one store and one record, whose tokens have one issuer: the first
// one's public listener.
func pair(t *testing.T, record keys.Record, edits ...func(*server.Config)) (first, second *replica) {
	t.Helper()
	seal, err := keys.NewSeal(bytes.Repeat([]byte{3}, keys.SealBytes))
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", redistest.FreePort(t))
	share := func(c *server.Config) {
		c.Issuer, c.SharedKeys = "https://"+addr, &server.SharedKeys{Record: record, Seal: seal}
	}
	edits = append(edits, share)
	first = startFederated(t, nil, append(edits, func(c *server.Config) { c.PublicAddr = addr })...)
	dir, err := os.MkdirTemp("", "errand-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, err := first.agent.Add(spiffeid.RequireFromString(brokerID))
	if err != nil {
		t.Fatal(err)
	}
	second = startWith(t, dir, identity.FromWorkloadAPI(socket, slog.New(slog.DiscardHandler)),
		append([]func(*server.Config){func(c *server.Config) { c.Store = first.store }}, edits...)...)
	second.ca = first.ca
	return first, second
}

func (r *replica) activeKey() string {
	r.t.Helper()
	signer, err := r.Keys().Signer()
	if err != nil {
		r.t.Fatal(err)
	}
	return signer.KeyID()
}

func (r *replica) publishes(kid string) bool {
	return bytes.Contains(r.Keys().Set().JSON, []byte(kid))
}

// TestP11_ARemovedKeyIsDeadAtEveryReplica: an operator removes it at one of two, and the other has
// stopped using and publishing it when it hears the feed, whether or not the record tells it.
func TestP11_ARemovedKeyIsDeadAtEveryReplica(t *testing.T) {
	for name, full := range map[string]bool{"with the record": false, "without the record": true} {
		t.Run(name, func(t *testing.T) {
			record := &sharedRecord{}
			first, second := pair(t, record)
			v := first.verifier()
			c, peer := second.bearer(reportID)
			kid, next := first.activeKey(), ""
			if second.activeKey() != kid {
				t.Fatal("the replicas sign with different keys")
			}
			for _, k := range first.Keys().Keys() {
				if k.State == keys.Next {
					next = k.ID
				}
			}
			old := c.begin().Tokens[0].AccessToken
			if _, err := v.Verify(t.Context(), old, peer, verify.Scope("orders:read")); err != nil {
				t.Fatalf("what the second replica signs: %v", err)
			}

			record.fill(full)
			revocation := broker.Revocation{Key: kid, Actor: "ada", Reason: "INC-7"}
			receipt, err := first.Broker().Revoke(t.Context(), revocation)
			if full != errors.Is(err, broker.ErrUnconfirmed) || full != errors.Is(err, errFull) || receipt.Ended.IsZero() {
				t.Fatalf("Revoke: %+v, %v", receipt, err)
			}
			first.eventually("both replicas let go of the key", func() bool {
				return !first.publishes(kid) && !second.publishes(kid) && first.activeKey() == next && second.activeKey() == next
			})
			first.eventually("its token is refused", func() bool {
				_, err := v.Verify(t.Context(), old, peer, verify.Scope("orders:read"))
				return errors.Is(err, verify.ErrRevoked) || errors.Is(err, verify.ErrSignature) // when its key is not in the set any more
			})
			fresh := c.begin().Tokens[0].AccessToken
			if _, err := v.Verify(t.Context(), fresh, peer, verify.Scope("orders:read")); err != nil {
				t.Errorf("a token of the next key: %v", err)
			}

			record.fill(false)
			first.eventually("both replicas have the same keys", func() bool {
				return reflect.DeepEqual(first.Keys().Keys(), second.Keys().Keys()) && first.publishes(next) && len(first.Keys().Keys()) == 3
			})
			// Whoever was told that it was not finished repeats it, at any replica.
			for _, r := range []*replica{first, second} {
				if _, err := r.Broker().Revoke(t.Context(), revocation); err != nil {
					t.Errorf("again: %v", err)
				}
			}
		})
	}
}

// TestP11_AKeyIsRevokedInAnOutage: it is answered with 202, and the verifiers of that replica are told; the other replica
// is when the store is back, whether or not the record can be read by then.
func TestP11_AKeyIsRevokedInAnOutage(t *testing.T) {
	outage, record := failing(away), &sharedRecord{}
	first, second := pair(t, record, withOperators, func(c *server.Config) { c.Store = outage.store(c.Store) })
	v := first.verifier()
	kid := second.activeKey()
	c, peer := second.bearer(reportID)
	old := c.begin().Tokens[0].AccessToken
	if _, err := v.Verify(t.Context(), old, peer, verify.Scope("orders:read")); err != nil {
		t.Fatal(err)
	}
	outage.fail()
	record.leave(true)
	admin := first.client(adminID)
	revoke := func(kid string) answer {
		return admin.send("POST", strings.Replace(wire.PathKeyRevoke, "{id}", kid, 1), `{"reason":"INC-7"}`, admin.at("operator"))
	}
	if a := revoke("typo"); a.status != http.StatusServiceUnavailable {
		t.Errorf("what may be no key: %d %s", a.status, a.body)
	}
	var done wire.KeyRevocation
	if a := revoke(kid); a.status != http.StatusAccepted || json.Unmarshal(a.body, &done) != nil || done.Durable || done.Feed != "" || done.Key != kid || done.Event == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if first.publishes(kid) || !second.publishes(kid) {
		t.Error("it is published where it is revoked, or is not where nobody can know")
	}
	outage.mend()
	first.eventually("the other replica lets go of it", func() bool { return !second.publishes(kid) && second.activeKey() != kid })
	first.eventually("its token is refused", func() bool {
		_, err := v.Verify(t.Context(), old, peer, verify.Scope("orders:read"))
		return errors.Is(err, verify.ErrRevoked) || errors.Is(err, verify.ErrSignature) // when its key is not in the set any more
	})
	record.leave(false)
	first.eventually("both replicas have the same keys", func() bool { return reflect.DeepEqual(first.Keys().Keys(), second.Keys().Keys()) })
	if a := revoke(kid); a.status != http.StatusOK {
		t.Errorf("again, when all is well: %d %s", a.status, a.body)
	}
}

// TestAReplicaWithoutAKeyIsNotReady, and says why.
func TestAReplicaWithoutAKeyIsNotReady(t *testing.T) {
	record := &sharedRecord{}
	r, _ := pair(t, record)
	record.fill(true)
	for range 2 {
		if _, err := r.Broker().Revoke(t.Context(), broker.Revocation{Key: r.activeKey(), Actor: "ada", Reason: "INC-7"}); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Fatalf("%v; want ErrUnconfirmed", err)
		}
	}
	if err := r.Ready(); !errors.Is(err, broker.ErrNotReady) || !errors.Is(err, keys.ErrNoKey) {
		t.Errorf("%v; want ErrNotReady with the reason", err)
	}
	record.fill(false)
	r.eventually("it is ready again", func() bool { return r.Ready() == nil })
}

// TestSharedKeysAreChecked: New refuses what it cannot open, and names the field.
func TestSharedKeysAreChecked(t *testing.T) {
	record := &sharedRecord{}
	first, _ := pair(t, record)
	other, err := keys.NewSeal(bytes.Repeat([]byte{4}, keys.SealBytes))
	if err != nil {
		t.Fatal(err)
	}
	for field, edit := range map[string]func(*server.Config){
		"SharedKeys": func(c *server.Config) { c.SharedKeys = &server.SharedKeys{Record: record, Seal: other} },
		"Issuer":     func(c *server.Config) { c.Issuer = "" },
	} {
		config := first.Config()
		config.AuditLog = t.TempDir() + "/audit.jsonl"
		config.WorkloadAddr, config.PublicAddr, config.OpsAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		edit(&config)
		_, err := server.New(config)
		var mistake *server.ConfigError
		if !errors.As(err, &mistake) || mistake.Field != field {
			t.Errorf("%s: %v", field, err)
		}
		if field == "SharedKeys" && (!errors.Is(err, keys.ErrSealed) || !strings.Contains(err.Error(), "another key file")) {
			t.Errorf("another key file: %v", err)
		}
	}
	if !slices.ContainsFunc(first.Keys().Keys(), func(k keys.Key) bool { return k.State == keys.Active }) {
		t.Error("the replica that was there has no key any more")
	}
}

// TestKeysInRedis: two replicas on a real server have the same keys, let go of one together, and go on
// with theirs when the server has crashed and lost everything.
func TestKeysInRedis(t *testing.T) {
	process := redistest.Start(t)
	store, err := redis.New(t.Context(), redis.Config{URL: process.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	record := store.Record("keys")
	first, second := pair(t, record, func(c *server.Config) { c.Store = store })
	same := func() bool { return reflect.DeepEqual(first.Keys().Keys(), second.Keys().Keys()) }
	first.eventually("both have the same keys", same)
	kid := first.activeKey()
	token := second.client(reportID).begin().Tokens[0].AccessToken
	if _, err := second.Broker().Revoke(t.Context(), broker.Revocation{Key: kid, Actor: "ada", Reason: "INC-7"}); err != nil {
		t.Fatal(err)
	}
	first.eventually("both have let go of it", func() bool { return !first.publishes(kid) && !second.publishes(kid) && same() })
	v := first.verifier()
	_, peer := first.bearer(reportID)
	if _, err := v.Verify(t.Context(), token, peer, verify.Scope("orders:read")); err == nil {
		t.Error("a token of the removed key is good")
	}
	before := first.Keys().Keys()
	process.Kill()
	process.Run()
	first.eventually("the keys are in Redis again", func() bool {
		_, version, _, err := record.Read(t.Context())
		return err == nil && version > 0 && first.Keys().Set().ETag == second.Keys().Set().ETag
	})
	if after := first.Keys().Keys(); !same() || !reflect.DeepEqual(after, before) {
		t.Errorf("after the crash there is\n%+v\nand\n%+v\nwant\n%+v", after, second.Keys().Keys(), before)
	}
}
