package sdk_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

var presentSpec = sdk.TaskSpec{
	Name: "payout", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}, Presence: true,
}

// presentProcess has a task with presence until it is killed.
func presentProcess() int {
	client, err := sdk.New(context.Background(), sdk.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	task, err := client.Begin(context.Background(), presentSpec)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(task.ID())
	<-task.Context().Done()
	return 2
}

// look reads a task as its workload.
func look(t *testing.T, b *brokertest.Broker, as *sdk.Client, task string) (out wire.Task) {
	t.Helper()
	svid, bundle := must(as.SVID())(t), must(as.Bundle())(t)
	transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(b.ID())))}
	defer transport.CloseIdleConnections()
	resp := must((&http.Client{Transport: transport}).Get(b.URL() + wire.PathTasks + "/" + task))(t)
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	return out
}

// bound waits until a task has its stream, and so its whole lease.
func bound(t *testing.T, b *brokertest.Broker, as *sdk.Client, task string) {
	t.Helper()
	eventually(t, "the task is followed", func() bool {
		got := look(t, b, as, task)
		return got.Presence && got.State == wire.StateActive && time.Until(got.LeaseExpiresAt) > 10*time.Second
	})
}

// lapses wants a task to have ended in time after a loss.
func lapses(t *testing.T, b *brokertest.Broker, as *sdk.Client, task string, lost time.Time) {
	t.Helper()
	var got wire.Task
	eventually(t, "the task is over", func() bool {
		got = look(t, b, as, task)
		return got.State != wire.StateActive
	})
	if got.State != wire.StateLapsed || got.Cause != "presence" || got.EndedAt.Sub(lost) > 2*time.Second {
		t.Errorf("it is %s by %s, %s after the loss", got.State, got.Cause, got.EndedAt.Sub(lost))
	}
}

// TestP6_AProcessThatIsKilledHasNoTaskTwoSecondsLater.
func TestP6_AProcessThatIsKilledHasNoTaskTwoSecondsLater(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t, brokertest.RealTime(), brokertest.AllowLeaks())
	child := exec.Command(must(os.Executable())(t))
	child.Env = append(os.Environ(), workloadVariable+"=present", "ERRAND_IDENTITY_DIR=")
	for name, value := range b.Env("export") {
		child.Env = append(child.Env, name+"="+value)
	}
	out := bufio.NewScanner(must(child.StdoutPipe())(t))
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	out.Scan()
	task := out.Text()
	if !strings.HasPrefix(task, "tsk_") {
		t.Fatalf("it says %q", task)
	}
	same := b.Client("export")
	bound(t, b, same, task)
	lost := time.Now()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	lapses(t, b, same, task, lost)
}

// TestP6_AConnectionThatIsLostEndsItsTasks unless the client is back within a second, as it is when there is
// a way.
func TestP6_AConnectionThatIsLostEndsItsTasks(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t, brokertest.RealTime())
	way := redistest.Between(t, strings.TrimPrefix(b.URL(), "https://"))
	client, near := b.Client("export", sdk.WithBroker("https://"+way.Addr())), b.Client("export")
	task := begin(t, client, presentSpec)
	bound(t, b, near, task.ID())
	for range 3 {
		way.Reset()
		time.Sleep(1500 * time.Millisecond) // longer than it has to come back
	}
	if got := look(t, b, near, task.ID()); got.State != wire.StateActive || task.State() != sdk.Active {
		t.Fatalf("with connections that are lost and made again it is %s", got.State)
	}
	lost := time.Now()
	way.Set(redistest.Fault{Refuse: true})
	way.Reset()
	lapses(t, b, near, task.ID(), lost)
	way.Set(redistest.Fault{})
	if cause := over(t, task); cause != sdk.ErrLeaseLost {
		t.Errorf("the cause is %v", cause)
	}
	if _, err := task.Token(t.Context(), ordersRead); err == nil || !strings.Contains(err.Error(), "connection") {
		t.Errorf("a token: %v", err)
	}
}

// TestPresenceOfManyTasks: each is followed as soon as it has begun, as many as one stream can; one more is
// refused, and one less is room for it.
func TestPresenceOfManyTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.on(events, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
		client, _ := inBubble(t, f)
		many := presentSpec
		many.Tokens = []sdk.TokenRequest{}
		long := begin(t, client, spec)
		var last *sdk.Task
		for range wire.MaxFollowed {
			last = begin(t, client, many)
		}
		if synctest.Wait(); len(f.got(events)) == 0 {
			t.Error("no stream was asked for at once")
		}
		if _, err := client.Begin(t.Context(), many); !errors.Is(err, sdk.ErrQuota) {
			t.Errorf("one more: %v", err)
		}
		must(last.Complete(t.Context()))(t)
		must(begin(t, client, many).Complete(t.Context()))(t)
		f.on(tasks, func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, http.StatusForbidden, wire.Problem{Type: "https://broker/problems/denied"})
		})
		for range 3 { // what was refused takes no place
			_, err := client.Begin(t.Context(), many)
			if !errors.Is(err, sdk.ErrDenied) {
				t.Errorf("a refused one: %v", err)
			}
		}
		must(long.Complete(t.Context()))(t)
	})
}

// TestHeartbeatsNameTheStream while it is open and a task depends on it. Without it they renew nothing, and the
// client knows: it gives the task up when it would without an answer.
func TestHeartbeatsNameTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	says := make(chan string)
	w.on(events, streaming(says))
	say := func(event string) {
		select {
		case says <- event:
		case <-time.After(20 * time.Second):
			t.Fatal("nobody listens to the stream any more")
		}
	}
	client := w.client(t)
	named := func(n int) string {
		eventually(t, "a heartbeat", func() bool { return len(w.got(heartbeats)) > n })
		var body wire.HeartbeatRequest
		if err := json.Unmarshal(w.got(heartbeats)[n].body, &body); err != nil {
			t.Fatal(err)
		}
		return body.Stream
	}
	brief := sdk.TaskSpec{Name: "payout", Purpose: "a test", Lease: 5 * time.Second}
	plain := begin(t, client, brief)
	if stream := named(0); stream != "" {
		t.Errorf("with no task that depends on it, the first names %q", stream)
	}
	must(plain.Complete(t.Context()))(t)
	brief.Presence = true
	task := begin(t, client, brief)
	say(beat) // it is followed
	for end := time.Now().Add(brief.Lease); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		say(beat)
	}
	if stream, state := named(len(w.got(heartbeats))-1), task.State(); stream != streamID || state != sdk.Active {
		t.Errorf("the last names %q; the task is %s", stream, state)
	}
	w.on(events, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	say("event: reset\ndata: {}\n\n")
	if cause := over(t, task); cause != sdk.ErrLeaseLost {
		t.Errorf("the cause is %v", cause)
	}
	if stream := named(len(w.got(heartbeats)) - 1); stream != "" {
		t.Errorf("after the stream, the last names %q", stream)
	}
}

// TestP6_ATaskWhoseStreamIsThereGoesOn for longer than its lease.
func TestP6_ATaskWhoseStreamIsThereGoesOn(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t, brokertest.RealTime())
	client := b.Client("export")
	brief := presentSpec
	brief.Lease = 5 * time.Second
	task := begin(t, client, brief)
	time.Sleep(12 * time.Second)
	if got := look(t, b, client, task.ID()); got.State != wire.StateActive || task.State() != sdk.Active {
		t.Errorf("it is %s by %s, and for the client %s", got.State, got.Cause, task.State())
	}
	must(task.Complete(t.Context()))(t)
}
