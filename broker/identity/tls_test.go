package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
)

func TestNoCertificate(t *testing.T) {
	h := newHouse(t, nil)
	h.refuses(h.config(nil)) // 01
}

// CVE-2024-23656 (Dex): the TLS settings were made and then not used. What counts is what the
// listener does.
func TestCVE_2024_23656_OldTLS(t *testing.T) {
	h := newHouse(t, nil)
	public := serve(t, &http.Server{Handler: http.NotFoundHandler(), TLSConfig: identity.PublicTLS(h.source)})
	peer := h.root.issue(t, worker)
	for name, c := range map[string]struct {
		version uint16
		suites  []uint16
	}{
		"02 TLS 1.0":     {tls.VersionTLS10, nil},
		"03 TLS 1.1":     {tls.VersionTLS11, nil},
		"04 TLS 1.2":     {tls.VersionTLS12, nil},
		"05 weak cipher": {tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.on(t)
			config := h.config(&peer)
			config.MinVersion, config.MaxVersion, config.CipherSuites = tls.VersionTLS10, c.version, c.suites
			h.refuses(config)
			conn, err := tls.Dial("tcp", public, config)
			if err == nil {
				conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "protocol version") {
				t.Errorf("the public listener: %v", err)
			}
		})
	}
}

func TestPublicListenerAsksNobody(t *testing.T) {
	h := newHouse(t, nil)
	addr := serve(t, &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
		TLSConfig: identity.PublicTLS(h.source),
	})
	config := h.config(nil)
	asked := false
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return new(tls.Certificate), nil
	}
	response, err := h.client(config).Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if proto, _ := io.ReadAll(response.Body); string(proto) != "HTTP/2.0" || asked {
		t.Errorf("answered over %s; asked for a certificate: %v", proto, asked)
	}
}

func TestPlainHTTP(t *testing.T) {
	h := newHouse(t, nil)
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + h.addr) // 45
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest || h.letIn() != 0 {
		t.Errorf("plain HTTP was answered with %s", response.Status)
	}
	h.good()
	plain, err := http.NewRequest(http.MethodGet, "http://"+h.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.source.Workload(plain); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a request without TLS: %v", err)
	}
	plain.TLS = &tls.ConnectionState{PeerCertificates: h.root.issue(t, worker).certs()}
	if _, err := h.source.Workload(plain); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a handshake that is not complete: %v", err)
	}
	plain.TLS = &tls.ConnectionState{HandshakeComplete: true}
	if _, err := h.source.Workload(plain); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a request without a certificate: %v", err)
	}
}

// The names that a client asks for do not matter: the SPIFFE ID is who we are.
func TestServerName(t *testing.T) {
	h := newHouse(t, nil)
	peer := h.root.issue(t, worker)
	for _, name := range []string{"evil.example", ours, "broker"} { // 46
		config := h.config(&peer)
		config.ServerName = name
		if got, err := h.call(config); err != nil || !strings.HasPrefix(got, worker+" ") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestProtocols(t *testing.T) {
	h := newHouse(t, nil)
	peer := h.root.issue(t, worker)
	for _, c := range []struct {
		offer []string
		want  string // "" is refused
	}{
		{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"http/1.1"}, "http/1.1"}, {[]string{"h3", "h2"}, "h2"},
		{[]string{"h3"}, ""}, {[]string{"junk", "\x00"}, ""}, {[]string{"http/1.0"}, ""}, // 47
	} {
		config := h.config(&peer)
		config.NextProtos = c.offer
		conn, err := tls.Dial("tcp", h.addr, config)
		if err == nil {
			if got := conn.ConnectionState().NegotiatedProtocol; got != c.want {
				t.Errorf("%q: %q was agreed on; want %q", c.offer, got, c.want)
			}
			conn.Close()
		}
		if (err == nil) != (c.want != "") {
			t.Errorf("%q: %v", c.offer, err)
		}
	}
	h.good()
}

// CVE-2025-68121 (GO-2026-4337): a session was resumed although the authority behind it was no
// longer trusted. Ours is refused on a new connection and on one that was kept.
func TestCVE_2025_68121_BundleRemoved(t *testing.T) {
	for _, proto := range []string{"h2", "http/1.1"} {
		t.Run(proto, func(t *testing.T) {
			h := newHouse(t, nil)
			peer := h.partner.issue(t, "spiffe://"+theirs+"/worker")
			config := h.config(&peer)
			config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			if proto == "http/1.1" {
				config.NextProtos = []string{proto}
			}
			kept := h.client(config)
			for range 2 {
				if _, err := h.get(kept); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the first would get the ticket, the second use it
				if resumed(t, h.addr, config) {
					t.Error("a session was resumed; there must be none")
				}
			}
			generation := h.source.Generation()
			h.files.write(theirs, certPEM(newAuthority(t).cert.Raw))
			eventually(t, "the bundle is replaced", func() bool { return h.source.Generation() > generation })

			for range 2 {
				if got, err := h.get(kept); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") || !strings.Contains(err.Error(), "unknown authority") {
					t.Errorf("the connection that was kept: %q, %v", got, err)
				}
			}
			h.refuses(config) // 42
		})
	}
}

// resumed connects, and stays for as long as the server needs to send a ticket if it has one.
func resumed(t *testing.T, addr string, config *tls.Config) bool {
	t.Helper()
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	return conn.ConnectionState().DidResume
}

// An SVID, or an intermediate above it, that expires while its connection is open.
func TestExpiresOnALiveConnection(t *testing.T) {
	h := newHouse(t, nil)
	for name, peer := range map[string]svid{
		"leaf":         h.root.issue(t, worker, lives(-time.Minute, 30*time.Minute)),
		"intermediate": h.root.below(t, lives(-time.Minute, 30*time.Minute)).issue(t, worker),
	} {
		t.Run(name, func(t *testing.T) {
			h := h.on(t)
			h.addr = serve(t, &http.Server{Handler: h, TLSConfig: identity.ServerTLS(h.source), ConnContext: identity.ConnContext})
			end := peer.certs()[len(peer.chain)-1].NotAfter
			kept := h.client(h.config(&peer))
			for _, at := range []time.Time{{}, end} {
				h.clock.set(at)
				if _, err := h.get(kept); err != nil {
					t.Fatalf("at %v: %v", at, err)
				}
			}
			h.clock.set(end.Add(time.Nanosecond))
			if got, err := h.get(kept); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") || !strings.Contains(err.Error(), "expired") {
				t.Errorf("after its end: %q, %v", got, err)
			}
			h.clock.set(time.Time{})
			h.good()
		})
	}
}

// New connections get the new SVID; those that are there stay.
func TestOwnRotation(t *testing.T) {
	h := newHouse(t, nil)
	peer := h.root.issue(t, worker)
	kept := h.client(h.config(&peer))
	if _, err := h.get(kept); err != nil {
		t.Fatal(err)
	}
	before := shown(t, h, &peer)
	generation := h.source.Generation()
	h.files.writeSVID(h.root.issue(t, brokerID))
	eventually(t, "the SVID is replaced", func() bool { return h.source.Generation() > generation })
	if after := shown(t, h, &peer); after == before {
		t.Error("a new connection got the old SVID")
	}
	if _, err := h.get(kept); err != nil {
		t.Errorf("the connection that was kept: %v", err)
	}
}

// shown returns the serial number of the SVID that a new connection sees.
func shown(t *testing.T, h *house, peer *svid) string {
	t.Helper()
	conn, err := tls.Dial("tcp", h.addr, h.config(peer))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// Before the first SVID nobody is served and nobody is believed.
func TestNothingYet(t *testing.T) {
	dir := files{t, t.TempDir()}
	source := fromFiles(dir.path("c"), dir.path("k"), dir.path("b"), nil)
	runSource(t, source)
	addr := serve(t, &http.Server{Handler: http.NotFoundHandler(), TLSConfig: identity.ServerTLS(source)})
	if conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		conn.Close()
		t.Error("a listener without an SVID made a connection")
	}
	peer := newAuthority(t).issue(t, worker)
	r := &http.Request{TLS: &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: peer.certs()}}
	_, byRequest := source.Workload(r)
	_, byChain := source.Verify(peer.certs(), time.Now())
	for _, err := range []error{byRequest, byChain} {
		if !errors.Is(err, identity.ErrIdentity) || !errors.Is(err, identity.ErrNoSVID) {
			t.Errorf("a peer before the first SVID: %v", err)
		}
	}
	if _, err := source.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) || source.Generation() != 0 {
		t.Errorf("GetX509SVID: %v, generation %d", err, source.Generation())
	}
	if _, err := os.Stat(dir.path("c")); err == nil {
		t.Fatal("the file is there after all")
	}
}
