package brokertest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/internal/steer"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

// person is somebody with an SVID.
type person struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// GetX509SVID implements x509svid.Source.
func (p *person) GetX509SVID() (*x509svid.SVID, error) { return p.svid, nil }

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (p *person) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return p.bundle.GetX509BundleForTrustDomain(td)
}

// id reads a SPIFFE ID, or the path of one.
func (b *Broker) id(name string) (spiffeid.ID, error) {
	if !strings.HasPrefix(name, "spiffe://") {
		return spiffeid.FromPath(b.domain, "/"+strings.TrimPrefix(name, "/"))
	}
	id, err := spiffeid.FromString(name)
	if err == nil && !id.MemberOf(b.domain) {
		err = fmt.Errorf("%s is not in the trust domain %s of this broker", id, b.domain)
	}
	return id, err
}

// person returns who has the ID, always with the same SVID.
func (b *Broker) person(id spiffeid.ID) (*person, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.people[id]; p != nil {
		return p, nil
	}
	svid, err := b.ca.Issue(id, certificateLife)
	if err != nil {
		return nil, err
	}
	p := &person{svid, b.ca.Bundle()}
	b.people[id] = p
	b.front.remember(svid.Certificates[0])
	return p, nil
}

// serverOf is who serves an audience: the first that the inventory names, or one of its own name.
func (b *Broker) serverOf(audience string) spiffeid.ID {
	if b.inventory.file != nil {
		if a, err := b.inventory.file.Audience(audience); err == nil && len(a.Servers) > 0 && a.Servers[0].MemberOf(b.domain) {
			return a.Servers[0]
		}
	}
	id, err := spiffeid.FromSegments(b.domain, audience)
	if err != nil || id == b.brokerID() {
		hash := sha256.Sum256([]byte(audience))
		id = spiffeid.RequireFromSegments(b.domain, "audience-"+hex.EncodeToString(hash[:8]))
	}
	return id
}

// server returns who serves an audience that the test has named.
func (b *Broker) serves(audience string, hosts ...string) (*person, error) {
	if err := b.inventory.name(audience, hosts...); err != nil {
		return nil, err
	}
	return b.person(b.serverOf(audience))
}

// Client returns a client of the workload, whose time is the broker's. It logs nothing, unless an
// option says otherwise. It is closed at the end of the test.
func (b *Broker) Client(workload string, opts ...sdk.Option) *sdk.Client {
	b.tb.Helper()
	id, err := b.id(workload)
	b.must(err)
	who, err := b.person(id)
	b.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	all := []sdk.Option{
		sdk.WithBroker(b.URL()), sdk.WithBrokerID(b.brokerID()), sdk.WithIdentity(sdk.FromSource(who, who)),
		sdk.WithLogger(slog.New(slog.DiscardHandler)), steer.Clock(b.clock.now).(sdk.Option),
	}
	client, err := sdk.New(ctx, append(all, opts...)...)
	b.must(err)
	b.mu.Lock()
	b.clients = append(b.clients, client)
	b.mu.Unlock()
	b.later(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		// What it leaves behind, checkLeaks has told.
		_ = client.Close(ctx)
	})
	return client
}

// WorkloadAPI returns the address of a SPIFFE Workload API socket for a workload or server, as
// SPIFFE_ENDPOINT_SOCKET has it.
func (b *Broker) WorkloadAPI(workload string) (addr string) {
	b.tb.Helper()
	id, err := b.id(workload)
	b.must(err)
	addr, err = b.agent.Add(id)
	b.must(err)
	return addr
}

// RotateSVID has the workload's Workload API hand out a new SVID, as an agent does halfway through the life
// of the old one. Who follows the socket has it a moment later; clients made by Client keep theirs.
func (b *Broker) RotateSVID(workload string) {
	b.tb.Helper()
	id, err := b.id(workload)
	b.must(err)
	b.must(b.agent.Rotate(id))
}

// Env is the environment in which sdk.New makes a client of the workload, and a resource server finds
// the broker: set it with testing.T.Setenv.
func (b *Broker) Env(workload string) map[string]string {
	b.tb.Helper()
	return map[string]string{
		sdk.EnvBrokerURL: b.URL(), sdk.EnvBrokerID: b.ID(), sdk.EnvWorkloadSocket: b.WorkloadAPI(workload), "ERRAND_ISSUER": b.Issuer(),
	}
}

// Verifier returns a verifier of the audience, whose time is the broker's. Its configuration is the
// default, but that it logs nothing and takes a plain HTTP request for the token's own workload; edit
// can change all of it. It is closed at the end of the test.
func (b *Broker) Verifier(audience string, edit ...func(*verify.Config)) *verify.Verifier {
	b.tb.Helper()
	who, err := b.serves(audience)
	b.must(err)
	broker, err := verifyspiffe.TLS(who, b.ID())
	b.must(err)
	config := verify.Config{
		Issuer: b.Issuer(), Audience: audience, TLS: broker, Peer: b.peer(verifyspiffe.PeerOf(who)), Now: b.clock.now,
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range edit {
		f(&config)
	}
	b.checked.follow(&config)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	v, err := verify.New(ctx, config)
	b.must(err)
	b.mu.Lock()
	b.verifiers = append(b.verifiers, v)
	b.mu.Unlock()
	b.later(func() { _ = v.Close() })
	return v
}

// peer finds the caller's certificate. Who comes without TLS is believed to be the token's workload.
func (b *Broker) peer(overTLS func(*http.Request) *verify.Peer) func(*http.Request) *verify.Peer {
	return func(r *http.Request) *verify.Peer {
		if r.TLS != nil {
			return overTLS(r)
		}
		leaf := b.front.find(bindingOf(r.Header.Get("Authorization")))
		if leaf == nil {
			return nil
		}
		return &verify.Peer{Certificate: leaf, Verified: true}
	}
}

// bindingOf reads the certificate's thumbprint out of a token, unverified: the verifier compares it.
func bindingOf(authorization string) string {
	parts := strings.Split(authorization, ".")
	if len(parts) != 3 {
		return ""
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct {
		Confirmation struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if json.Unmarshal(text, &claims) != nil {
		return ""
	}
	return claims.Confirmation.Thumbprint
}

// Serve serves a handler over mutual TLS as the audience's server, and returns its URL, which has no
// path. A task's HTTPClient can call it. It ends with the test.
func (b *Broker) Serve(audience string, h http.Handler) (url string) {
	b.tb.Helper()
	config := b.ServerTLS(audience)
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.TLS = config
	server.StartTLS()
	b.later(server.Close)
	b.Host(audience, server.URL)
	return server.URL
}

// ServerTLS is the TLS configuration of the audience's server, for one that Serve cannot serve: it
// shows the server's SVID and asks callers for theirs. See Host.
func (b *Broker) ServerTLS(audience string) *tls.Config {
	b.tb.Helper()
	who, err := b.serves(audience)
	b.must(err)
	config := tlsconfig.MTLSServerConfig(who, who, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	certificate := tls.Certificate{PrivateKey: who.svid.PrivateKey}
	for _, c := range who.svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	config.Certificates = []tls.Certificate{certificate} // or httptest would use its own
	config.GetCertificate = nil
	return config
}

// Host makes a server of the test known as a host of the audience, by its URL or host:port: tokens
// that are issued from now on may be sent there.
func (b *Broker) Host(audience, server string) {
	b.tb.Helper()
	host := server
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		host = u.Host
		if u.Port() == "" && u.Scheme == "http" {
			host += ":80"
		}
	}
	_, err := b.serves(audience, host)
	b.must(err)
}
