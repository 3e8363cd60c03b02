package broker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// muteStore neither lists nor delivers while it is gone.
type muteStore struct {
	broker.Store
	gone atomic.Bool
}

func (s *muteStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	if s.gone.Load() {
		return broker.ErrUnavailable
	}
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		if s.gone.Load() {
			return broker.ErrUnavailable
		}
		return emit(u)
	})
}

func (s *muteStore) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	if s.gone.Load() {
		return broker.Page{}, broker.ErrUnavailable
	}
	return s.Store.List(ctx, q)
}

// sharedLog may be read while it is written.
type sharedLog struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *sharedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *sharedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestAFaultThatLastsDoesNotFillTheLog: it is said when it begins, now and then, and when it is over.
func TestAFaultThatLastsDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log sharedLog
		kept, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		store := &muteStore{Store: kept}
		newHarness(t, store, func(c *broker.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		lines := func(what string) int { return strings.Count(log.String(), what) }
		const watch, sweep = "the store's feed broke off", "what is due could not be ended"
		for outage := range 2 {
			store.gone.Store(true)
			time.Sleep(20 * time.Second)
			if w, s := lines(watch), lines(sweep); w != 3*outage+1 || s != 3*outage+1 {
				t.Errorf("after 20 s of outage %d the log has the feed %d times, and the sweep %d times", outage, w, s)
			}
			time.Sleep(50 * time.Second)
			if w, s := lines(watch), lines(sweep); w != 3*outage+3 || s != 3*outage+3 {
				t.Errorf("after 70 s of outage %d the log has the feed %d times, and the sweep %d times", outage, w, s)
			}
			store.gone.Store(false)
			time.Sleep(2 * time.Second)
			if w, s := lines("the store's feed is followed again"), lines("what is due is ended again"); w != outage+1 || s != outage+1 {
				t.Errorf("after outage %d the log says %d and %d times that it is over", outage, w, s)
			}
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
}

// TestAnAuditLogThatFailsIsSaidOnce, however many ask for tokens, and when it is over.
func TestAnAuditLogThatFailsIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log sharedLog
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		h.audit.break_(errors.New("no space left"))
		for range 35 { // seconds
			if _, err := h.tryBegin(report, withToken); !errors.Is(err, broker.ErrAudit) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 || strings.Count(log.String(), "no space left") != 2 {
			t.Errorf("35 s are in the log %d times:\n%s", n, log.String())
		}
		h.audit.break_(nil)
		time.Sleep(2 * time.Second)
		if n := strings.Count(log.String(), "the audit log is written again"); n != 1 {
			t.Errorf("the log says %d times that it is over:\n%s", n, log.String())
		}
	})
}
