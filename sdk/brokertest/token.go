package brokertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/verify"
)

// Token makes a token without a client and a task of the test's own, for tests of handlers. Of the
// grant it reads the Workload ("caller" when it is empty), Audience, Scopes, Expires (in a minute) and
// Task.Name; the rest is the broker's to say, and Grants has it. The policy is asked as for any other. Its
// task is no leak, and lives for ten minutes.
func (b *Broker) Token(g verify.Grant) string {
	b.tb.Helper()
	token, _ := b.token(g)
	return token
}

// Sign gives a request a token, as Token makes it. A request that has no TLS state gets that of the
// workload's connection, so that a handler which looks at the certificate finds it.
func (b *Broker) Sign(r *http.Request, g verify.Grant) {
	b.tb.Helper()
	token, who := b.token(g)
	r.Header.Set("Authorization", "Bearer "+token)
	if r.TLS == nil {
		r.TLS = &tls.ConnectionState{
			Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: r.Host, PeerCertificates: who.svid.Certificates,
			VerifiedChains: [][]*x509.Certificate{append(who.svid.Certificates[:1:1], who.bundle.X509Authorities()...)},
		}
	}
}

func (b *Broker) token(g verify.Grant) (string, *person) {
	b.tb.Helper()
	if g.Workload == "" {
		g.Workload = "caller"
	}
	id, err := b.id(g.Workload)
	b.must(err)
	who, err := b.person(id)
	b.must(err)
	b.must(b.inventory.name(g.Audience))
	begun, err := b.begin(id, who, g)
	b.must(err)
	b.store.adopt(begun.Task.ID)
	return begun.Tokens[0].Token.Secret(), who
}

// begin begins a task for one token.
func (b *Broker) begin(id spiffeid.ID, who *person, g verify.Grant) (broker.Begun, error) {
	scopes, err := broker.ParseScopes(g.Scopes)
	if err != nil {
		return broker.Begun{}, err
	}
	if g.Task.Name == "" {
		g.Task.Name = "brokertest"
	}
	var life time.Duration
	if !g.Expires.IsZero() {
		life = g.Expires.Sub(b.Now()).Round(time.Second)
	}
	leaf := who.svid.Certificates[0]
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	return b.server.Broker().Begin(ctx, broker.Workload{ID: id, Thumbprint: thumbprint(leaf), NotAfter: leaf.NotAfter}, broker.BeginRequest{
		Name: g.Task.Name, Purpose: "a token for a test", Lease: broker.MaxLease,
		Ceiling: broker.Ceiling{Audiences: broker.Audiences{g.Audience}, Scopes: scopes},
		Tokens:  []broker.TokenRequest{{Audience: g.Audience, Scopes: scopes, Life: life}},
	})
}
