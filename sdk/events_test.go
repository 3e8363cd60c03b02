package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

const events = "GET events"

// streaming answers the events of a client: those of says, after a beat for each stream that begins.
func streaming(says <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", wire.TypeEvents)
		w.Header().Set(wire.HeaderStream, streamID)
		event := beat
		for {
			fmt.Fprint(w, event)
			w.(http.Flusher).Flush()
			select {
			case event = <-says:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// ending makes a request one whose stream ends as soon as it has begun.
func ending(r *http.Request) *http.Request {
	ctx, cancel := context.WithCancel(r.Context())
	cancel()
	return r.WithContext(ctx)
}

const streamID = "str_of_the_fake"

const beat = "event: beat\ndata: {}\n\n"

func ended(task, state, cause string) string {
	return fmt.Sprintf("event: task.ended\ndata: {\"id\":%q,\"state\":%q,\"cause\":%q}\n\n", task, state, cause)
}

// over waits until a task is, and returns why.
func over(t *testing.T, task *sdk.Task) error {
	t.Helper()
	select {
	case <-task.Context().Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the task goes on")
	}
	return context.Cause(task.Context())
}

// repeat says something until ctx ends: a stream that the client is just replacing by one about more tasks may hear it in vain.
func repeat(ctx context.Context, says chan<- string, event string) {
	for {
		select {
		case says <- event:
			time.Sleep(100 * time.Millisecond)
		case <-ctx.Done():
			return
		}
	}
}

// TestAnEndedTaskLearnsFromTheStream, long before its next heartbeat, and says why.
func TestAnEndedTaskLearnsFromTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	says := make(chan string)
	w.on(events, streaming(says))
	client := w.client(t, sdk.WithDefaults(sdk.TaskSpec{Lease: 10 * time.Minute})) // no heartbeat is due, however busy the machine is
	for _, c := range []struct {
		state, cause string
		want         error
	}{
		{wire.StateRevoked, "operator", sdk.ErrRevoked}, {wire.StateLapsed, "lease", sdk.ErrLeaseLost},
		{wire.StateExpired, "deadline", sdk.ErrDeadline}, {wire.StateCanceled, "parent", sdk.ErrParentEnded},
		{wire.StateUnknown, "", sdk.ErrTaskEnded},
	} {
		task, other := begin(t, client, spec), begin(t, client, spec)
		w.set(task.ID(), c.state)
		says <- ended("tsk_0000000000000000000000000000", c.state, c.cause) // a stranger's
		says <- ended(task.ID(), wire.StateActive, "")                      // is no end
		says <- "event: news\ndata: {}\n\n" + beat                          // nobody knows of this yet
		go repeat(task.Context(), says, ended(task.ID(), c.state, c.cause))
		if cause := over(t, task); cause != c.want {
			t.Errorf("%s: the cause is %v; want %v", c.state, cause, c.want)
		}
		if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, c.want) || !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("%s: a token: %v", c.state, err)
		}
		if other.State() != sdk.Active {
			t.Errorf("%s: the other task is %s", c.state, other.State())
		}
		must(other.Complete(t.Context()))(t)
		if err := task.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := len(w.got(heartbeats)); n != 0 {
		t.Errorf("%d heartbeats", n)
	}
}

// TestAStreamThatIsResetGoesOnElsewhere, at once and with the same tasks; one that breaks off, or falls
// silent, is tried again.
func TestAStreamThatIsResetGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	there := newFake(t)
	second := serve(t, there, must(w.ca.Issue(brokerID, 0))(t), w.ca.Bundle())
	says, elsewhere := make(chan string), make(chan string)
	w.on(events, streaming(says))
	followed := make(chan []string, 10)
	there.on(events, func(w http.ResponseWriter, r *http.Request) {
		followed <- r.URL.Query()["task"]
		streaming(elsewhere)(w, r)
	})
	client := w.client(t, sdk.WithBroker(w.broker.String(), second.String()))
	task := begin(t, client, spec)
	says <- "event: reset\ndata: {}\n\n"
	if names := <-followed; !slices.Equal(names, []string{task.ID() + ":1"}) {
		t.Errorf("elsewhere it follows %q", names)
	}
	elsewhere <- "event: task.ended\ndata: no JSON\n\n"
	<-followed // it was broken off, and is tried again at the same replica
	<-followed // it was silent
	elsewhere <- ended(task.ID(), wire.StateRevoked, "operator")
	if cause := over(t, task); cause != sdk.ErrRevoked {
		t.Errorf("the cause is %v", cause)
	}
	if n := len(w.got(events)); n != 1 {
		t.Errorf("the replica that sent it away was asked %d times", n)
	}
}

// TestShortTasksOpenNoStream, however many there are, and long ones as few as they can.
func TestShortTasksOpenNoStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex
		var all [][]string
		f.on(events, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, r.URL.Query()["task"])
			w.WriteHeader(http.StatusNotFound)
		})
		named := func() [][]string {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		client, _ := inBubble(t, f)
		for range 20 {
			task := begin(t, client, spec)
			time.Sleep(900 * time.Millisecond)
			must(task.Complete(t.Context()))(t)
		}
		if got := named(); len(got) != 0 {
			t.Fatalf("streams of %v", got)
		}
		var ids []string
		for range wire.MaxFollowed + 1 {
			ids = append(ids, begin(t, client, spec).ID()+":1")
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		before := named()
		if n := len(before); n == 0 || !slices.Equal(before[n-1], ids[:wire.MaxFollowed]) {
			t.Errorf("it follows %v; want the oldest %d", before, wire.MaxFollowed)
		}
		// A broker that has no such streams is asked ever more rarely.
		time.Sleep(time.Hour)
		if n := len(named()) - len(before); n > 250 {
			t.Errorf("%d tries in an hour", n)
		}
	})
}

// TestMoreTasksChangeTheStreamRarely: a client that goes on beginning tasks does not open a stream for each,
// and never is without one.
func TestMoreTasksChangeTheStreamRarely(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var open, most, opened atomic.Int32
	w.on(events, func(rw http.ResponseWriter, r *http.Request) {
		opened.Add(1)
		most.Store(max(most.Load(), open.Add(1)))
		defer open.Add(-1)
		rw.Header().Set("Content-Type", wire.TypeEvents)
		for r.Context().Err() == nil {
			fmt.Fprint(rw, beat)
			rw.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	client := w.client(t)
	for range 60 {
		begin(t, client, spec)
		time.Sleep(50 * time.Millisecond)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d streams within three seconds", n)
	}
	eventually(t, "the others are followed as well", func() bool { return opened.Load() == 2 && open.Load() == 1 })
	if n := most.Load(); n > 2 {
		t.Errorf("%d streams at once", n)
	}
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
	eventually(t, "the stream ends with the client", func() bool { return open.Load() == 0 })
}
