package devmode

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "dev.errand"

func newCA(t *testing.T, opts Options) *CA {
	t.Helper()
	ca, err := NewCA(domain, opts)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func workloadID(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + domain + path)
}

func TestIssue(t *testing.T) {
	ca := newCA(t, Options{})
	svid, err := ca.Issue(workloadID("/report"), 0)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(svid.Certificates, ca.Bundle())
	if err != nil || id != workloadID("/report") {
		t.Fatalf("the SVID verifies as %v, %v", id, err)
	}
	// ParseRaw has go-spiffe's rules for a leaf: a path, digitalSignature, no CA.
	chain, key, err := svid.MarshalRaw()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509svid.ParseRaw(chain, key); err != nil {
		t.Fatal(err)
	}
	leaf := svid.Certificates[0]
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || !leaf.BasicConstraintsValid {
		t.Errorf("the leaf has key usage %b, CA %v", leaf.KeyUsage, leaf.IsCA)
	}
	if life := time.Until(leaf.NotAfter); life > DefaultLife || life < DefaultLife-time.Minute {
		t.Errorf("the leaf lives for another %v; want %v", life, DefaultLife)
	}
	if !leaf.NotBefore.Before(time.Now().Add(-5 * time.Second)) {
		t.Errorf("a peer whose clock is 5 s behind would refuse the leaf: it begins at %v", leaf.NotBefore)
	}
	authority := ca.Bundle().X509Authorities()[0]
	if !authority.IsCA || authority.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || authority.URIs[0].String() != "spiffe://"+domain {
		t.Errorf("the CA's certificate: CA %v, key usage %b, names %v", authority.IsCA, authority.KeyUsage, authority.URIs)
	}
}

// A client that knows nothing of SPIFFE, as curl --cacert, can call a server that has an SVID.
func TestOrdinaryClient(t *testing.T) {
	ca := newCA(t, Options{})
	svid, err := ca.Issue(workloadID("/broker"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") }))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}}
	server.StartTLS()
	defer server.Close()

	roots := x509.NewCertPool()
	for _, authority := range ca.Bundle().X509Authorities() {
		roots.AddCert(authority)
	}
	_, port, _ := strings.Cut(server.Listener.Addr().String(), ":")
	for _, host := range []string{"127.0.0.1", "localhost"} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
		response, err := client.Get("https://" + host + ":" + port)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	if _, err := svid.Certificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: "::1"}); err != nil {
		t.Error(err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := newCA(t, Options{Life: time.Hour})
	for name, c := range map[string]struct {
		id   string
		life time.Duration
		want string // "" is allowed
	}{
		"another domain":     {"spiffe://other.example/report", time.Minute, "not in the trust domain"},
		"no path":            {"spiffe://" + domain, time.Minute, "names a trust domain"},
		"the shortest":       {"spiffe://" + domain + "/a", MinLife, ""},
		"too short":          {"spiffe://" + domain + "/a", MinLife - 1, "2s at least"},
		"negative":           {"spiffe://" + domain + "/a", -time.Hour, "2s at least"},
		"outlives the CA":    {"spiffe://" + domain + "/a", time.Hour + time.Second, "would outlive the CA"},
		"nearly as the CA's": {"spiffe://" + domain + "/a", time.Hour - 2*time.Second, ""},
	} {
		_, err := ca.Issue(spiffeid.RequireFromString(c.id), c.life)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	for _, name := range []string{"", "Dev.Errand", "dev errand", "dev/errand"} {
		if _, err := NewCA(name, Options{}); err == nil {
			t.Errorf("the trust domain %q was allowed", name)
		}
	}
	if _, err := NewCA(domain, Options{Life: MinLife - 1}); err == nil {
		t.Error("a CA with a life below MinLife was made")
	}
}
