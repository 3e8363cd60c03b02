package api_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const brokerID = "spiffe://example.org/errand"

// listener is a server that is the broker, and answers as a test wants.
func listener(t *testing.T, answer http.HandlerFunc) (url, identityDir string) {
	t.Helper()
	ca, err := devmode.NewCA("example.org", devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "errand-test-") // shorter than t.TempDir: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	api := devmode.NewWorkloadAPI(ca, sockets, time.Hour)
	addr, err := api.Add(spiffeid.RequireFromString("spiffe://example.org/alice"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	alice, err := devmode.Open(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	identityDir = t.TempDir()
	if _, err := alice.WriteFiles(identityDir); err != nil {
		t.Fatal(err)
	}
	svid, err := ca.Issue(spiffeid.RequireFromString(brokerID), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(answer)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{{
		Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey,
	}}}
	s.StartTLS()
	t.Cleanup(func() {
		s.Close()
		_ = alice.Close()
		cancel()
		<-done
		os.RemoveAll(sockets)
	})
	return s.URL, identityDir
}

// open makes a client with an environment.
func open(t *testing.T, environment map[string]string) (*api.Client, error) {
	t.Helper()
	c, err := api.Open(t.Context(), api.Environment{Getenv: func(name string) string { return environment[name] }}, api.Operator)
	if err == nil {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return c, err
}

func TestAnswers(t *testing.T) {
	var answer http.HandlerFunc
	url, dir := listener(t, func(w http.ResponseWriter, r *http.Request) { answer(w, r) })
	c, err := open(t, map[string]string{"ERRAND_OPERATOR_URL": url, "ERRAND_BROKER_ID": brokerID, "ERRAND_IDENTITY_DIR": dir})
	if err != nil {
		t.Fatal(err)
	}
	problem := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", wire.TypeProblem)
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"type":"https://a/problems/role-required","title":"T","status":403,"detail":"D"}`)
	}
	padded := func(size int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"keys":[]}`+strings.Repeat(" ", size-len(`{"keys":[]}`)))
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   error // nil: none
		text   string
	}{
		"good":           {padded(20), nil, ""},
		"the largest":    {padded(api.MaxAnswer), nil, ""},
		"larger":         {padded(api.MaxAnswer + 1), api.ErrUnreachable, fmt.Sprintf("its answer has more than %d bytes", api.MaxAnswer)},
		"no JSON":        {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, api.ErrUnreachable, "not the broker's listener"},
		"a refusal":      {problem, nil, "the broker refused: T\n  D\n  See https://a/problems/role-required"},
		"somebody's 404": {http.NotFound, api.ErrUnreachable, "404 Not Found"},
		"a redirect":     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }, api.ErrUnreachable, "302 Found"},
		"a broken-off body": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			_, _ = io.WriteString(w, "{")
		}, api.ErrUnreachable, "broke off: unexpected EOF"},
	} {
		answer = test.answer
		var list wire.KeyList
		_, err := c.Send(t.Context(), api.Request{Method: "GET", Path: wire.PathKeys}, &list)
		if test.want == nil && test.text == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var refused *api.Refusal
		if errors.As(err, &refused) != (test.want == nil) || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
		if refused != nil && (refused.Name() != wire.ProblemRoleRequired || len(refused.JSON) == 0) {
			t.Errorf("%s: %+v", name, refused)
		}
	}
}

// TestOnlyTheBroker: another workload of the trust domain is not taken for the broker.
func TestOnlyTheBroker(t *testing.T) {
	url, dir := listener(t, func(http.ResponseWriter, *http.Request) { t.Error("a request came through") })
	c, err := open(t, map[string]string{"ERRAND_OPERATOR_URL": url, "ERRAND_BROKER_ID": "spiffe://example.org/other", "ERRAND_IDENTITY_DIR": dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(t.Context(), api.Request{Method: "POST", Path: wire.PathKeyRotate, Body: wire.OperatorRequest{Reason: "x"}}, &wire.KeyRotation{}); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestOpen(t *testing.T) {
	_, dir := listener(t, http.NotFound)
	empty := t.TempDir()
	for name, test := range map[string]struct {
		environment map[string]string
		want        error
		text        string
	}{
		"no URL":       {map[string]string{}, api.ErrConfig, "--operator-url or ERRAND_OPERATOR_URL"},
		"http":         {map[string]string{"ERRAND_OPERATOR_URL": "http://a"}, api.ErrConfig, `"http://a"`},
		"a path":       {map[string]string{"ERRAND_OPERATOR_URL": "https://a/b"}, api.ErrConfig, `"https://a/b"`},
		"no broker":    {map[string]string{"ERRAND_OPERATOR_URL": "https://a"}, api.ErrConfig, "ERRAND_BROKER_ID"},
		"bad broker":   {map[string]string{"ERRAND_OPERATOR_URL": "https://a", "ERRAND_BROKER_ID": "errand", "ERRAND_IDENTITY_DIR": dir}, api.ErrConfig, `"errand"`},
		"no identity":  {map[string]string{"ERRAND_OPERATOR_URL": "https://a", "ERRAND_BROKER_ID": brokerID}, api.ErrNoIdentity, "SPIFFE_ENDPOINT_SOCKET"},
		"empty folder": {map[string]string{"ERRAND_OPERATOR_URL": "https://a", "ERRAND_BROKER_ID": brokerID, "ERRAND_IDENTITY_DIR": empty}, api.ErrNoIdentity, filepath.Join(empty, "credentialbundle.pem")},
	} {
		if _, err := open(t, test.environment); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
