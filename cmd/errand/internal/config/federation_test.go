package config

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// domains are our trust domain and a partner's, whose bundle is in a file and at an endpoint.
type domains struct {
	t        *testing.T
	dir      string
	partner  *devmode.CA
	roots    *x509.CertPool // ours
	endpoint string
}

func newDomains(t *testing.T) *domains {
	t.Helper()
	d := &domains{t: t, dir: t.TempDir(), roots: x509.NewCertPool()}
	our := d.ca("example.org")
	d.partner = d.ca("partner.example")
	for _, authority := range our.Bundle().X509Authorities() {
		d.roots.AddCert(authority)
	}
	certificate, key, err := issue(t, our, "spiffe://example.org/errand").Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d.write("svid.pem", string(certificate))
	d.write("key.pem", string(key))
	d.write("inventory.yaml", `
audiences: [{name: orders, owner: o, scopes: [r]}]
workloads: [{id: spiffe://partner.example/worker, owner: o, purpose: p, ceiling: {orders: [r]}}]
`)
	published, err := federation.NewHandler(d.partner.TrustDomain(), spiffebundle.FromX509Bundle(d.partner.Bundle()))
	if err != nil {
		t.Fatal(err)
	}
	endpoint := httptest.NewUnstartedServer(published)
	endpoint.TLS = &tls.Config{Certificates: []tls.Certificate{shown(issue(t, d.partner, "spiffe://partner.example/endpoint"))}}
	endpoint.StartTLS()
	t.Cleanup(endpoint.Close)
	d.endpoint = endpoint.URL
	return d
}

// ca makes a trust domain, and a file with its authorities, named after it.
func (d *domains) ca(name string) *devmode.CA {
	d.t.Helper()
	ca, err := devmode.NewCA(name, devmode.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	var text strings.Builder
	for _, authority := range ca.Bundle().X509Authorities() {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}) // to memory
	}
	d.write(name+".pem", text.String())
	return ca
}

func (d *domains) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func issue(t *testing.T, ca *devmode.CA, id string) *x509svid.SVID {
	t.Helper()
	svid, err := ca.Issue(spiffeid.RequireFromString(id), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func shown(svid *x509svid.SVID) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}
}

// serve runs the replica of a file that says this of federation, until the test ends.
func (d *domains) serve(name, federation string) *server.Server {
	d.t.Helper()
	text := fmt.Sprintf(`issuer: https://localhost:1
broker_url: https://localhost:2
listeners: {workload: "127.0.0.1:0", public: "127.0.0.1:0", ops: "127.0.0.1:0"}
identity: {certificate: %[1]s/svid.pem, key: %[1]s/key.pem, bundle: %[1]s/example.org.pem, federation: %[2]s}
inventory: %[1]s/inventory.yaml
audit: {log: %[1]s/%[3]s.jsonl}
store: {type: memory}
`, d.dir, federation, name)
	c, problems := parse(d.t, text, nil, nil)
	if problems != nil {
		d.t.Fatal(problems)
	}
	settings, _, err := c.Replica(d.t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := server.New(settings)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	d.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			d.t.Error(err)
		}
	})
	d.eventually("the replica is ready", func() bool { return s.Ready() == nil })
	return s
}

func (d *domains) eventually(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// asks has the partner's worker ask who it is, on a new connection, and returns the status; 0 for no answer.
func (d *domains) asks(s *server.Server) int {
	d.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: d.roots, Certificates: []tls.Certificate{shown(issue(d.t, d.partner, "spiffe://partner.example/worker"))},
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	resp, err := client.Get("https://" + s.Listening()["workload"] + wire.PathWhoami)
	if err != nil {
		return 0 // the handshake has failed
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// TestFederation: a workload of a partner's trust domain is believed when the file says where the partner's
// bundle is, in each of the ways that it may, and not otherwise.
func TestFederation(t *testing.T) {
	d := newDomains(t)
	if got := d.asks(d.serve("nobody", "[]")); got == http.StatusOK {
		t.Error("nobody is federated, and the partner's worker is believed")
	}
	for name, text := range map[string]string{
		"file":   "file: " + d.dir + "/partner.example.pem",
		"web":    "url: " + d.endpoint + ", profile: https_web, ca_file: " + d.dir + "/partner.example.pem",
		"spiffe": "url: " + d.endpoint + ", profile: https_spiffe, endpoint_id: spiffe://partner.example/endpoint, bootstrap: " + d.dir + "/partner.example.pem",
	} {
		s := d.serve(name, "[{trust_domain: partner.example, "+text+"}]")
		d.eventually("by "+name+", the partner's worker is believed", func() bool { return d.asks(s) == http.StatusOK })
	}
}
