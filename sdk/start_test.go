package sdk_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

func TestStart(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	if client.ID() != reportID || client.Healthy() != nil {
		t.Errorf("the client is %s, %v", client.ID(), client.Healthy())
	}
	if n := len(w.got(whoami)); n != 1 {
		t.Errorf("%d requests", n)
	}
	err := client.Do(t.Context(), spec, func(ctx context.Context, task *sdk.Task) error {
		_, err := task.Token(ctx, ordersRead)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// startError is what New says in the end, which must have all the texts. It gets more and more time, since on
// a busy machine the first tries may be over before anybody has answered.
func startError(t *testing.T, opts []sdk.Option, says ...string) (err error) {
	t.Helper()
	for timeout := 300 * time.Millisecond; timeout < 30*time.Second; timeout *= 4 {
		// The caller's own timeout comes last, and so counts.
		client, startErr := sdk.New(t.Context(), append([]sdk.Option{sdk.WithStartupTimeout(timeout)}, opts...)...)
		if startErr == nil || client != nil {
			t.Fatalf("it started; the error is %v", startErr)
		}
		err = startErr
		if !slices.ContainsFunc(says, func(text string) bool { return !strings.Contains(err.Error(), text) }) {
			return err
		}
	}
	t.Errorf("%q does not say all of %q", err, says)
	return err
}

// Who is not the pinned broker is nobody, also with an SVID of the same trust domain.
func TestBrokerIsPinned(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		svid *x509svid.SVID
		want error
	}{
		"another workload": {must(w.ca.Issue(ordersID, 0))(t), sdk.ErrBrokerID},
		"another CA":       {must(must(devmode.NewCA("example.org", devmode.Options{}))(t).Issue(brokerID, 0))(t), sdk.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			impostor := newFake(t)
			at := serve(t, impostor, c.svid, w.ca.Bundle())
			err := startError(t, append(w.options(), sdk.WithBroker(at.String())), at.Host, brokerID.String())
			if !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if len(impostor.calls) != 0 {
				t.Error("the impostor got a request")
			}
		})
	}
}

// Who presents another SPIFFE ID will go on doing so: New does not wait, and says which one it was. A
// replica that is the broker is found all the same, and one that is only away is waited for.
func TestAnotherSPIFFEIDAtTheBrokersAddress(t *testing.T) {
	w := newWorld(t)
	at := serve(t, newFake(t), must(w.ca.Issue(ordersID, 0))(t), w.ca.Bundle())
	_, err := sdk.New(t.Context(), append(w.options(), sdk.WithBroker(at.String(), at.String()))...) // 30 s, or less
	if !errors.Is(err, sdk.ErrBrokerID) || errors.Is(err, sdk.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	for _, text := range []string{at.Host, ordersID.String(), brokerID.String(), "ERRAND_BROKER_ID"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
	client := w.client(t, sdk.WithBroker(at.String(), w.broker.String()))
	begin(t, client, spec)
	away := sdk.WithBroker(at.String(), "https://127.0.0.1:1")
	if _, err := sdk.New(t.Context(), append(w.options(), away, sdk.WithStartupTimeout(time.Second))...); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// The error of New names each source and replica, what it answered, and what to do.
func TestStartupErrors(t *testing.T) {
	w := newWorld(t)
	dead := serve(t, http.NotFoundHandler(), must(w.ca.Issue(brokerID, 0))(t), w.ca.Bundle())
	dead.Host = "127.0.0.1:1"
	socket := "unix://" + filepath.Join(t.TempDir(), "agent.sock")
	for name, c := range map[string]struct {
		opts []sdk.Option
		want error
		says []string
	}{
		"nothing set":      {[]sdk.Option{sdk.WithIdentity(nil)}, sdk.ErrNoIdentity, []string{"SPIFFE_ENDPOINT_SOCKET: not set", "ERRAND_IDENTITY_DIR: not set", "WithIdentity"}},
		"no agent":         {[]sdk.Option{sdk.WithIdentity(nil), sdk.WithEnv(map[string]string{"SPIFFE_ENDPOINT_SOCKET": socket})}, sdk.ErrNoIdentity, []string{socket, "no such file", "that the agent runs", "ERRAND_IDENTITY_DIR: not set"}},
		"a bare path":      {[]sdk.Option{sdk.WithIdentity(nil), sdk.WithEnv(map[string]string{"SPIFFE_ENDPOINT_SOCKET": "/agent.sock"})}, sdk.ErrNoIdentity, []string{"as unix:///run/spire/agent/api.sock"}},
		"no agent, no dir": {[]sdk.Option{sdk.WithIdentity(nil), sdk.WithEnv(map[string]string{"SPIFFE_ENDPOINT_SOCKET": socket, "ERRAND_IDENTITY_DIR": "/nowhere"})}, sdk.ErrNoIdentity, []string{socket, "/nowhere", "svid_bundle.pem", "errand doctor"}},
		"nil sources":      {[]sdk.Option{sdk.WithIdentity(sdk.FromSource(nil, nil))}, sdk.ErrNoIdentity, []string{"the program's own source"}},
		"no broker":        {[]sdk.Option{sdk.WithBroker()}, nil, []string{"broker's URL is not known", "ERRAND_BROKER_URL"}},
		"no scheme":        {[]sdk.Option{sdk.WithBroker("127.0.0.1:8443")}, nil, []string{"must be https://"}},
		"a plain broker":   {[]sdk.Option{sdk.WithBroker("http://broker:8443")}, nil, []string{"https://"}},
		"a password":       {[]sdk.Option{sdk.WithBroker("https://u:hunter2@broker:8443")}, nil, []string{"u:xxxxx@"}},
		"too many":         {[]sdk.Option{sdk.WithBroker(make([]string, sdk.MaxBrokers+1)...)}, nil, []string{"17 broker URLs"}},
		"no broker ID":     {[]sdk.Option{sdk.WithBrokerID(spiffeid.ID{})}, nil, []string{"ERRAND_BROKER_ID"}},
		"no time":          {[]sdk.Option{sdk.WithStartupTimeout(0)}, nil, []string{"startup timeout"}},
		"nobody there":     {[]sdk.Option{sdk.WithBroker(dead.String(), "https://127.0.0.1:2")}, sdk.ErrUnavailable, []string{"127.0.0.1:1", "127.0.0.1:2", "refused", reportID.String()}},
	} {
		t.Run(name, func(t *testing.T) {
			err := startError(t, append(w.options(), c.opts...), append(c.says, "sdk: ")...)
			if c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%q has the password", err)
			}
		})
	}
}

func TestRefusalAtStartIsFinal(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"unregistered": {func(rw http.ResponseWriter, _ *http.Request) {
			refuse(rw, 403, wire.Problem{Type: "x/unregistered", Title: "Workload not registered"})
		}, sdk.ErrUnregistered},
		"a server alone": {func(rw http.ResponseWriter, _ *http.Request) {
			reply(rw, 200, wire.Whoami{Workload: reportID.String(), Serves: []string{"orders"}})
		}, sdk.ErrUnregistered},
		"taken for another": {func(rw http.ResponseWriter, _ *http.Request) {
			reply(rw, 200, wire.Whoami{Workload: "spiffe://example.org/proxy"})
		}, sdk.ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			w.on(whoami, c.answer)
			before := len(w.got(whoami))
			if _, err := sdk.New(t.Context(), w.options()...); !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if n := len(w.got(whoami)) - before; n != 1 {
				t.Errorf("%d tries", n)
			}
		})
	}
}

func TestStartWaitsForTheBroker(t *testing.T) {
	w := newWorld(t)
	tries := 0
	w.on(whoami, func(rw http.ResponseWriter, r *http.Request) {
		if tries++; tries < 3 {
			refuse(rw, 503, wire.Problem{Type: "x/not-ready"})
			return
		}
		w.answer(rw, r)
	})
	w.client(t)
}

// The replicas are tried in order, and the one that answers is kept.
func TestReplicas(t *testing.T) {
	w := newWorld(t)
	second := newFake(t)
	at := serve(t, second, must(w.ca.Issue(brokerID, 0))(t), w.ca.Bundle())
	w.on(whoami, down)
	client := w.client(t, sdk.WithBroker(w.broker.String(), at.String()))
	if len(w.got(whoami)) == 0 || len(second.got(whoami)) != 1 {
		t.Errorf("%d and %d requests at the start", len(w.got(whoami)), len(second.got(whoami)))
	}
	task := begin(t, client, spec)
	if len(w.got(tasks)) != 0 || len(second.got(tasks)) != 1 {
		t.Error("the client went back to the replica that did not answer")
	}
	second.on(tokens, away)
	w.set(task.ID(), wire.StateActive)
	must(task.Token(t.Context(), ordersRead))(t)
	if len(w.got(tokens)) != 1 {
		t.Error("the client did not go on to the next replica")
	}
}

// One replica is killed while tasks run: the next one takes over at once, the tasks live and end, and
// the client stays there.
func TestReplicaIsKilledMidRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.lease = 6
	first := newServer(t, w.fake, must(w.ca.Issue(brokerID, 0))(t), w.ca.Bundle(), tls.VersionTLS13)
	client := w.client(t, sdk.WithBroker(first.URL, w.broker.String()))
	fresh := ordersRead
	fresh.Fresh = true
	err := client.Do(t.Context(), spec, func(ctx context.Context, task *sdk.Task) error {
		must(task.Token(ctx, fresh))(t)
		first.CloseClientConnections()
		first.Close()
		must(task.Token(ctx, fresh))(t)
		before := len(w.got(heartbeats))
		eventually(t, "heartbeats reach the other one", func() bool { return len(w.got(heartbeats)) >= before+2 })
		return ctx.Err()
	})
	if err != nil {
		t.Error(err)
	}
	begin(t, client, spec)
	if n := len(w.got(tasks)); n != 2 {
		t.Errorf("%d begins", n)
	}
}

func TestAnswerAtItsLimit(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	task := begin(t, client, spec)
	for size, want := range map[int]error{sdk.MaxAnswer: nil, sdk.MaxAnswer + 1: sdk.ErrUnavailable} {
		w.on(tokens, func(rw http.ResponseWriter, r *http.Request) {
			text := fmt.Sprintf(`{"access_token":"x","token_type":"bearer","expires_in":60,"grant_id":"gnt_1"}%s`, strings.Repeat(" ", size))
			_, _ = rw.Write([]byte(text[:size]))
		})
		if _, err := task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Fresh: true}); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestTLS12IsRefused(t *testing.T) {
	w := newWorld(t)
	server := serveTLS(t, w.fake, must(w.ca.Issue(brokerID, 0))(t), w.ca.Bundle(), tls.VersionTLS12)
	startError(t, append(w.options(), sdk.WithBroker(server.String())), "protocol version")
}

// A workload with a real Workload API, and nothing but the environment.
func TestStartFromTheEnvironment(t *testing.T) {
	w := newWorld(t)
	api := devmode.NewWorkloadAPI(w.ca, t.TempDir(), 0)
	addr := must(api.Add(reportID))(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	client, err := sdk.New(t.Context(), sdk.WithLogger(slog.New(slog.DiscardHandler)), sdk.WithEnv(map[string]string{
		"ERRAND_BROKER_URL":      "https://127.0.0.1:1, " + w.broker.String(),
		"ERRAND_BROKER_ID":       brokerID.String(),
		"SPIFFE_ENDPOINT_SOCKET": addr,
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeClient(client)
	task := begin(t, client, spec)
	first := must(task.Token(t.Context(), ordersRead))(t)
	if err := api.Rotate(reportID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is asked for again after the rotation", func() bool {
		return must(task.Token(t.Context(), ordersRead))(t).GrantID != first.GrantID
	})
}

// The directory is the second choice.
func TestStartFallsBackToTheDirectory(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	writeSVID(t, dir, w.who.svid, w.ca.Bundle())
	client, err := sdk.New(t.Context(), append(w.options(), sdk.WithIdentity(nil), sdk.WithStartupTimeout(9*time.Second), sdk.WithEnv(map[string]string{
		"SPIFFE_ENDPOINT_SOCKET": "unix://" + filepath.Join(t.TempDir(), "agent.sock"), "ERRAND_IDENTITY_DIR": dir,
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	closeClient(client)
}
