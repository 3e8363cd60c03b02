package api_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
)

// TestEnvironment: each mistake names the variable and what to set it to.
func TestEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		variable, value string
		read            func(api.Environment) error
		text            string
	}{
		"no URL":           {"ERRAND_BROKER_URL", "", brokerURLs, "set ERRAND_BROKER_URL, as https://"},
		"http":             {"ERRAND_BROKER_URL", "http://broker:8443", brokerURLs, `"http://broker:8443"; it must begin with https://`},
		"a path":           {"ERRAND_BROKER_URL", "https://broker/v1", brokerURLs, `"https://broker/v1"`},
		"the second wrong": {"ERRAND_BROKER_URL", "https://a,b", brokerURLs, `"b"`},
		"too many":         {"ERRAND_BROKER_URL", strings.Repeat("https://a,", 17), brokerURLs, "has 17 URLs; at most 16"},
		"no ID":            {"ERRAND_BROKER_ID", "", brokerIDOf, "set ERRAND_BROKER_ID, as spiffe://"},
		"no SPIFFE ID":     {"ERRAND_BROKER_ID", "errand", brokerIDOf, `ERRAND_BROKER_ID is "errand", which is not the SPIFFE ID`},
		"no path in it":    {"ERRAND_BROKER_ID", "spiffe://example.org", brokerIDOf, "it has no path"},
		"no issuer":        {"ERRAND_ISSUER", "", issuer, "--issuer or ERRAND_ISSUER"},
		"a plain issuer":   {"ERRAND_ISSUER", "http://broker", issuer, `"http://broker"; it must begin with https://`},
		"no operators":     {"ERRAND_OPERATOR_URL", "", operatorURL, "--operator-url or ERRAND_OPERATOR_URL"},
		"plain operators":  {"ERRAND_OPERATOR_URL", "http://127.0.0.1:9443", operatorURL, `URL is "http://127.0.0.1:9443"; it must begin with https://`},
		"no scheme":        {"SPIFFE_ENDPOINT_SOCKET", "/run/agent.sock", identity, "give it as unix:///"},
	} {
		err := test.read(only(test.variable, test.value))
		if !errors.Is(err, api.ErrConfig) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	urls, err := only("ERRAND_BROKER_URL", "https://a:1, https://b/").BrokerURLs()
	if err != nil || len(urls) != 2 {
		t.Errorf("two URLs: %q, %v", urls, err)
	}
	over := only("ERRAND_BROKER_URL", "https://a")
	over.Flags = map[string]string{"ERRAND_BROKER_URL": "https://flag"}
	if urls, err := over.BrokerURLs(); err != nil || urls[0] != "https://flag" {
		t.Errorf("a flag is over the environment: %q, %v", urls, err)
	}
}

func only(variable, value string) api.Environment {
	return api.Environment{Getenv: func(name string) string {
		if name == variable {
			return value
		}
		return ""
	}}
}

func brokerURLs(e api.Environment) error  { _, err := e.BrokerURLs(); return err }
func brokerIDOf(e api.Environment) error  { _, err := e.BrokerID(); return err }
func issuer(e api.Environment) error      { _, err := e.Issuer(); return err }
func operatorURL(e api.Environment) error { _, err := e.OperatorURL(); return err }
func identity(e api.Environment) error    { _, err := e.Identity(context.Background()); return err }

// TestNoIdentity: what is wrong with a socket or a folder is said at once.
func TestNoIdentity(t *testing.T) {
	short, err := os.MkdirTemp("", "errand-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	dead := filepath.Join(short, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(short, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ variable, value, text string }{
		"nothing set":      {"", "", "set SPIFFE_ENDPOINT_SOCKET"},
		"no socket":        {"SPIFFE_ENDPOINT_SOCKET", "unix://" + filepath.Join(short, "none.sock"), "there is no such socket"},
		"no agent":         {"SPIFFE_ENDPOINT_SOCKET", "unix://" + dead, "the agent has ended"},
		"no folder":        {"ERRAND_IDENTITY_DIR", filepath.Join(short, "none"), "no such file"},
		"a file":           {"ERRAND_IDENTITY_DIR", file, "not a directory"},
		"an empty folder":  {"ERRAND_IDENTITY_DIR", t.TempDir(), "svid.pem"},
		"a socket of none": {"SPIFFE_ENDPOINT_SOCKET", "unix:///", "Workload API at unix:///"},
	} {
		began := time.Now()
		_, err := only(test.variable, test.value).Identity(t.Context())
		if !errors.Is(err, api.ErrNoIdentity) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
}

// TestCurl: the line is one that a shell takes, and a secret is read by the shell.
func TestCurl(t *testing.T) {
	e := api.Environment{Getenv: func(name string) string {
		return map[string]string{"ERRAND_BROKER_URL": "https://b:8443", "ERRAND_IDENTITY_DIR": "/run/it's"}[name]
	}}
	line, err := e.Curl(api.Request{
		Method: "POST", Path: "/v1/tasks/tsk_1/end", Body: wire.EndRequest{Outcome: "completed"}, SecretMember: "end_key", SecretFile: "my key",
	}, api.Workload)
	if err != nil {
		t.Fatal(err)
	}
	const want = `curl --fail-with-body --request POST --cacert '/run/it'\''s/svid_bundle.pem' --cert '/run/it'\''s/svid.pem' --key '/run/it'\''s/svid_key.pem' ` +
		`--header 'Content-Type: application/json' --data '{"outcome":"completed","end_key":"'"$(cat 'my key')"'"}' 'https://b:8443/v1/tasks/tsk_1/end'`
	if line != want {
		t.Errorf("got\n%s\nwant\n%s", line, want)
	}
}
