package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var partnerDomain = spiffeid.RequireTrustDomainFromString(theirs)

const (
	partnerWorker = "spiffe://" + theirs + "/worker"
	endpointID    = "spiffe://" + theirs + "/bundle-endpoint"
)

// endpoint is a partner's bundle endpoint on loopback.
type endpoint struct {
	t   testing.TB
	url string

	mu     sync.Mutex
	bundle *spiffebundle.Bundle
	answer http.HandlerFunc // in place of the bundle, when set
	cert   tls.Certificate
	asked  int
}

func newEndpoint(t testing.TB, cert svid, authorities ...authority) *endpoint {
	t.Helper()
	e := &endpoint{t: t, cert: cert.tls()}
	e.publish(1, authorities...)
	published, err := federation.NewHandler(partnerDomain, e)
	if err != nil {
		t.Fatal(err)
	}
	e.url = "https://" + serve(t, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e.mu.Lock()
			e.asked++
			answer := e.answer
			e.mu.Unlock()
			if answer == nil {
				answer = published.ServeHTTP
			}
			answer(w, r)
		}),
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			cert := e.cert
			return &cert, nil
		}},
	}) + "/bundle.json"
	return e
}

// GetBundleForTrustDomain implements spiffebundle.Source.
func (e *endpoint) GetBundleForTrustDomain(spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bundle.Clone(), nil
}

func (e *endpoint) change(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *endpoint) publish(sequence uint64, authorities ...authority) {
	b := spiffebundle.New(partnerDomain)
	b.SetSequenceNumber(sequence)
	for _, a := range authorities {
		b.AddX509Authority(a.cert)
	}
	e.change(func() { e.bundle = b })
}

func (e *endpoint) answers(f http.HandlerFunc) { e.change(func() { e.answer = f }) }

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

// union is our own house with a partner that is federated as a test says.
type union struct {
	*identity.Source
	t     testing.TB
	root  authority
	files files
	clock *clock
	said  *log
}

func federate(t testing.TB, edit func(dir files, f *identity.Federation)) *union {
	t.Helper()
	u := &union{t: t, root: newAuthority(t), files: files{t, t.TempDir()}, clock: &clock{}, said: &log{}}
	u.clock.set(time.Now())
	u.files.writeSVID(u.root.issue(t, brokerID))
	u.files.write("bundle.pem", certPEM(u.root.cert.Raw))
	u.Source = fromFiles(u.files.path("svid.pem"), u.files.path("svid.pem"), u.files.path("bundle.pem"), u.said)
	u.Now = u.clock.now
	u.SetFetchTimeout(2 * time.Second)
	f := identity.Federation{TrustDomain: theirs}
	edit(u.files, &f)
	if err := u.Federate(f); err != nil {
		t.Fatal(err)
	}
	runSource(t, u.Source)
	wait(t, u.Source)
	return u
}

// loopback makes a certificate one for the host that tests are on.
func loopback(c *x509.Certificate) {
	c.ExtraExtensions, c.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
}

// web federates by an endpoint with a certificate for its address, signed by an authority of its own.
func web(t testing.TB, partner authority) (*union, *endpoint) {
	t.Helper()
	ca := newAuthority(t)
	e := newEndpoint(t, ca.issue(t, endpointID, loopback), partner)
	u := federate(t, func(dir files, f *identity.Federation) {
		dir.write("ca.pem", certPEM(ca.cert.Raw))
		f.URL, f.Profile, f.CAFile = e.url, identity.HTTPSWeb, dir.path("ca.pem")
	})
	return u, e
}

func (u *union) pass(d time.Duration) { u.clock.set(u.clock.now().Add(d)) }

func (u *union) believes(peer svid) bool {
	_, err := u.Verify(peer.certs(), time.Now())
	if err != nil && !errors.Is(err, identity.ErrIdentity) {
		u.t.Error(err)
	}
	return err == nil
}

func (u *union) eventually(what string, ok func() bool) {
	u.t.Helper()
	eventually(u.t, what, ok)
}

func (u *union) says(want string) bool {
	return slices.ContainsFunc(u.said.warnings(), func(line string) bool { return strings.Contains(line, want) })
}

func (u *union) holds(td string) bool {
	return slices.Contains(u.Held(), spiffeid.RequireTrustDomainFromString(td))
}

// asksAgain lets time pass until the endpoint is asked, and answered.
func (u *union) asksAgain(e *endpoint) {
	u.t.Helper()
	before := e.count()
	u.pass(identity.DefaultRefresh)
	u.eventually("the endpoint is asked again", func() bool { return e.count() > before })
}

func TestFederateByWebEndpoint(t *testing.T) {
	partner, next := newAuthority(t), newAuthority(t)
	u, e := web(t, partner)
	u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
	peer := partner.issue(t, partnerWorker)
	if !u.believes(peer) {
		t.Error("the partner's worker is refused")
	}
	// Each speaks for itself.
	if u.believes(partner.issue(t, worker)) {
		t.Error("the partner's authority speaks for our trust domain")
	}
	if u.believes(u.root.issue(t, partnerWorker)) {
		t.Error("our authority speaks for the partner's trust domain")
	}
	if u.believes(partner.issue(t, "spiffe://elsewhere.example/worker")) {
		t.Error("the partner's authority speaks for a third trust domain")
	}
	// What was kept for a connection dies with the generation.
	kept := request(peer).WithContext(identity.ConnContext(t.Context(), nil))
	if _, err := u.Workload(kept); err != nil {
		t.Error(err)
	}
	generation := u.Generation()
	e.publish(2, next)
	u.asksAgain(e)
	u.eventually("a new generation", func() bool { return u.Generation() > generation })
	if _, err := u.Workload(kept); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("an authority that is gone: %v", err)
	}
	if !u.believes(next.issue(t, partnerWorker)) {
		t.Error("the new authority's worker is refused")
	}
	// A bundle without authorities means that nobody is to be trusted.
	e.answers(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"keys":[],"spiffe_sequence":3}`) })
	u.asksAgain(e)
	u.eventually("nobody is trusted", func() bool { return !u.believes(next.issue(t, partnerWorker)) })
	if u.holds(theirs) || !u.holds(ours) {
		t.Errorf("held are %v", u.Held())
	}
	if got := u.said.warnings(); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
}

// The endpoint is known by the bootstrap file once, and from then on by what it has said, so that the
// partner can rotate its authorities.
func TestFederateBySPIFFEEndpoint(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	e := newEndpoint(t, first.issue(t, endpointID), first, second)
	u := federate(t, func(dir files, f *identity.Federation) {
		dir.write("bootstrap", certPEM(first.cert.Raw))
		f.URL, f.Profile, f.EndpointID, f.Bootstrap = e.url, identity.HTTPSSPIFFE, endpointID, dir.path("bootstrap")
	})
	u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
	u.files.write("bootstrap", certPEM(newAuthority(t).cert.Raw))
	for sequence, rotated := range []authority{second, newAuthority(t), newAuthority(t)} {
		e.publish(uint64(sequence+2), second, rotated)
		u.asksAgain(e)
		u.eventually("the rotation is seen", func() bool { return u.believes(rotated.issue(t, partnerWorker)) })
		e.publish(uint64(sequence+2), rotated)
		e.change(func() { e.cert = rotated.issue(t, endpointID).tls() })
		u.asksAgain(e)
		u.eventually("the old one is gone", func() bool { return !u.believes(first.issue(t, partnerWorker)) })
		second = rotated
	}
	if got := u.said.warnings(); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
}

func TestEndpointThatIsSomebodyElse(t *testing.T) {
	partner := newAuthority(t)
	for name, c := range map[string]struct {
		cert svid
		want string
	}{
		"another workload":   {partner.issue(t, partnerWorker), "unexpected ID"},
		"a stranger":         {newAuthority(t).issue(t, endpointID), "unknown authority"},
		"expired":            {partner.issue(t, endpointID, lives(-time.Hour, -time.Minute)), "expired"},
		"not the host's":     {partner.issue(t, "https://127.0.0.1"), "scheme"},
		"another's endpoint": {partner.issue(t, "spiffe://elsewhere.example/bundle-endpoint"), "trust domain"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEndpoint(t, c.cert, partner)
			u := federate(t, func(dir files, f *identity.Federation) {
				dir.write("bootstrap", certPEM(partner.cert.Raw))
				f.URL, f.Profile, f.EndpointID, f.Bootstrap = e.url, identity.HTTPSSPIFFE, endpointID, dir.path("bootstrap")
			})
			u.eventually("it is said", func() bool { return u.says(c.want) })
			if trusts(u.Source, theirs) || e.count() != 0 {
				t.Errorf("the bundle was taken, or asked for %d times", e.count())
			}
			if !u.holds(theirs) {
				t.Error("what may still come is not held")
			}
		})
	}
}

func TestWebEndpointOfAnotherHost(t *testing.T) {
	partner, ca := newAuthority(t), newAuthority(t)
	for name, c := range map[string]struct {
		cert   svid
		caFile []byte
		want   string
	}{
		"another host":     {ca.issue(t, endpointID, func(c *x509.Certificate) { c.ExtraExtensions, c.DNSNames = nil, []string{"a.example"} }), certPEM(ca.cert.Raw), "127.0.0.1"},
		"another CA":       {ca.issue(t, endpointID, loopback), certPEM(partner.cert.Raw), "unknown authority"},
		"the CA file junk": {ca.issue(t, endpointID, loopback), []byte("junk"), "has no certificate"},
		"no CA file":       {ca.issue(t, endpointID, loopback), nil, "no such file"},
		"system's roots":   {ca.issue(t, endpointID, loopback), []byte("-"), "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEndpoint(t, c.cert, partner)
			u := federate(t, func(dir files, f *identity.Federation) {
				f.URL, f.Profile, f.CAFile = e.url, identity.HTTPSWeb, dir.path("ca.pem")
				if string(c.caFile) == "-" {
					f.CAFile = ""
				} else if c.caFile != nil {
					dir.write("ca.pem", c.caFile)
				}
			})
			u.eventually("it is said", func() bool { return u.says(c.want) })
			if trusts(u.Source, theirs) || e.count() != 0 {
				t.Errorf("the bundle was taken, or asked for %d times", e.count())
			}
		})
	}
}

// What a hostile or broken endpoint may answer changes nothing and is said once; then a good answer is
// taken.
func TestBadAnswers(t *testing.T) {
	partner, other := newAuthority(t), newAuthority(t)
	u, e := web(t, partner)
	u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
	elsewhere := newEndpoint(t, other.issue(t, endpointID), other)
	body := func(text []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.Write(text) }
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	leaf := other.issue(t, partnerWorker).certs()[0]
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"another authority", redirect(elsewhere.url), "redirects to https://" + strings.TrimPrefix(strings.TrimSuffix(elsewhere.url, "/bundle.json"), "https://")},
		{"another scheme", redirect("http" + strings.TrimPrefix(e.url, "https")), "redirects to http://127"},
		{"in circles", redirect("/"), "more than 3 times"},
		{"not found", http.NotFound, "404"},
		{"not modified", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "204"},
		{"larger than MaxBundle", body(bytes.Repeat([]byte(" "), identity.MaxBundle+1)), "larger than"},
		{"without end", func(w http.ResponseWriter, _ *http.Request) {
			for err := error(nil); err == nil; _, err = w.Write(make([]byte, 1<<16)) {
			}
		}, "larger than"},
		{"drop by drop", func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil && i < 1000; i++ {
				io.WriteString(w, " ")
				http.NewResponseController(w).Flush()
				time.Sleep(5 * time.Millisecond)
			}
		}, "Timeout"},
		{"a header without end", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, "connection error"},
		{"cut", body([]byte(`{"keys":[`)), "unexpected end"},
		{"no keys", body([]byte(`{}`)), "no authorities found"},
		{"PEM", body(certPEM(other.cert.Raw)), "parse JWKS"},
		{"not an authority", body(jwks(t, 9, leaf)), "not an authority's"},
		{"too many", body(jwks(t, 9, many(t, identity.MaxAuthorities+1)...)), "at most 64"},
		{"sequence gone back", body(jwks(t, 0, other.cert)), "sequence number is 0"},
		{"no sequence any more", body(bytes.Replace(jwks(t, 9, other.cert), []byte("spiffe_sequence"), []byte("x"), 1)), "no sequence number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.answers(nil) // so that each is said for itself
			u.asksAgain(e)
			before := len(u.said.warnings())
			e.answers(c.answer)
			for range 2 {
				count := e.count()
				u.pass(identity.DefaultRefresh)
				eventually(t, "it is asked", func() bool { return e.count() > count })
				eventually(t, "it is said", func() bool { return u.says(c.want) })
			}
			if !u.believes(partner.issue(t, partnerWorker)) || u.believes(other.issue(t, partnerWorker)) {
				t.Error("what there was is gone")
			}
			if n := len(u.said.warnings()) - before; n != 1 {
				t.Errorf("it was said %d times: %q", n, u.said.warnings()[before:])
			}
		})
	}
	if elsewhere.count() != 0 {
		t.Error("the redirect was followed")
	}
	e.answers(nil)
	e.publish(9, other)
	u.asksAgain(e)
	u.eventually("a good answer is taken", func() bool { return u.believes(other.issue(t, partnerWorker)) })
	e.answers(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bundle.json" {
			http.Redirect(w, r, "/moved", http.StatusFound)
			return
		}
		w.Write(jwks(t, 10, partner.cert))
	})
	u.asksAgain(e)
	u.eventually("a redirect to the same authority is followed", func() bool { return u.believes(partner.issue(t, partnerWorker)) })
}

// jwks is a bundle document with a sequence number.
func jwks(t testing.TB, sequence uint64, authorities ...*x509.Certificate) []byte {
	t.Helper()
	b := spiffebundle.FromX509Authorities(partnerDomain, authorities)
	b.SetSequenceNumber(sequence)
	text, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func many(t testing.TB, n int) (all []*x509.Certificate) {
	for range n {
		all = append(all, newAuthority(t).cert)
	}
	return all
}

// An endpoint is asked as often as it wants, within bounds.
func TestRefresh(t *testing.T) {
	partner := newAuthority(t)
	for name, c := range map[string]struct{ hint, want time.Duration }{
		"no hint":       {0, identity.DefaultRefresh},
		"a second":      {time.Second, identity.MinRefresh},
		"the shortest":  {identity.MinRefresh, identity.MinRefresh},
		"two minutes":   {2 * time.Minute, 2 * time.Minute},
		"the longest":   {identity.MaxRefresh, identity.MaxRefresh},
		"a day":         {24 * time.Hour, identity.MaxRefresh},
		"less than one": {-5 * time.Second, identity.MinRefresh},
	} {
		t.Run(name, func(t *testing.T) {
			u, e := web(t, partner)
			b := spiffebundle.FromX509Authorities(partnerDomain, []*x509.Certificate{partner.cert})
			if c.hint != 0 {
				b.SetRefreshHint(c.hint)
			}
			// The first answer may have come before the hint was there.
			u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
			e.change(func() { b.SetSequenceNumber(2); e.bundle = b })
			u.asksAgain(e)
			count := e.count()
			u.pass(c.want - time.Second)
			looks := u.clock.reads()
			u.eventually("the clock is looked at", func() bool { return u.clock.reads() > looks+50 })
			if e.count() != count {
				t.Errorf("it was asked again before %v", c.want)
			}
			u.pass(time.Second)
			u.eventually("it is asked again", func() bool { return e.count() == count+1 })
		})
	}
}

// A bundle that cannot be read again is trusted for MaxAge, and not a moment longer; the replica's
// own go on. It comes back by itself.
func TestMaxAge(t *testing.T) {
	partner := newAuthority(t)
	for _, by := range []string{"endpoint", "file"} {
		t.Run(by, func(t *testing.T) {
			var u *union
			var silence, speak func()
			if by == "endpoint" {
				var e *endpoint
				u, e = web(t, partner)
				silence = func() { e.answers(http.NotFound); u.asksAgain(e) }
				speak = func() { e.answers(nil) }
			} else {
				u = federate(t, func(dir files, f *identity.Federation) {
					dir.write("partner", certPEM(partner.cert.Raw))
					f.File = dir.path("partner")
				})
				silence = func() { os.Remove(u.files.path("partner")) }
				speak = func() { u.files.write("partner", certPEM(partner.cert.Raw)) }
			}
			u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
			start := u.clock.now()
			silence()
			u.eventually("it is said that it is silent", func() bool { return u.says("could not be read") })
			peer := partner.issue(t, partnerWorker)
			u.clock.set(start.Add(identity.DefaultMaxAge))
			if !u.believes(peer) || !u.holds(theirs) {
				t.Error("before MaxAge it is refused")
			}
			u.clock.set(u.clock.now().Add(time.Minute))
			u.eventually("past MaxAge it is refused", func() bool { return !u.believes(peer) })
			if u.holds(theirs) || !u.believes(u.root.issue(t, worker)) {
				t.Errorf("held are %v", u.Held())
			}
			u.eventually("it is said once", func() bool { return strings.Count(strings.Join(u.said.warnings(), ""), "too old, and") == 1 })
			speak()
			u.pass(identity.MinRefresh)
			u.eventually("it is back", func() bool { return u.believes(peer) && u.holds(theirs) })
		})
	}
}

// Past MaxAge exactly, to the nanosecond, where nothing else moves.
func TestMaxAgeToTheNanosecond(t *testing.T) {
	u := federate(t, func(dir files, f *identity.Federation) { f.File, f.MaxAge = dir.path("nothing"), identity.MinMaxAge })
	start := u.clock.now()
	u.clock.set(start.Add(identity.MinMaxAge))
	if !u.holds(theirs) {
		t.Error("at MaxAge what has not come yet is not held any more")
	}
	u.clock.set(start.Add(identity.MinMaxAge + 1))
	if u.holds(theirs) {
		t.Error("past MaxAge it is still held")
	}
}

// Files say all: an authority that is taken out is withdrawn, even the one behind our own SVID.
func TestFilesWithdraw(t *testing.T) {
	partner := newAuthority(t)
	u := federate(t, func(dir files, f *identity.Federation) {
		dir.write("partner", jwks(t, 7, partner.cert))
		f.File = dir.path("partner")
	})
	u.eventually("the partner is trusted", func() bool { return trusts(u.Source, theirs) })
	old, peer := u.root.issue(t, worker), partner.issue(t, partnerWorker)

	// By a document that is older, too: an operator may go back.
	u.files.write("partner", []byte(`{"keys":[],"spiffe_sequence":1}`))
	u.eventually("an empty document withdraws", func() bool { return !u.believes(peer) && !u.holds(theirs) })
	u.files.write("partner", certPEM(partner.cert.Raw))
	u.eventually("it is back", func() bool { return u.believes(peer) })

	next := newAuthority(t)
	u.files.write("bundle.pem", jwks(t, 1, next.cert)) // as a document
	u.eventually("the authority is withdrawn", func() bool { return !u.believes(old) })
	if !u.believes(next.issue(t, worker)) || !u.believes(peer) {
		t.Error("those of the new bundle are refused")
	}
	u.eventually("it is said that our own SVID does not fit", func() bool { return u.says("do not fit together") })
	before, _ := u.GetX509SVID()
	u.files.writeSVID(next.issue(t, brokerID))
	u.eventually("an SVID that fits is taken", func() bool {
		now, _ := u.GetX509SVID()
		return !now.Certificates[0].Equal(before.Certificates[0])
	})
}

// A bundle that cannot be read grows old, our own too; the SVID is kept.
func TestOwnBundleGrowsOld(t *testing.T) {
	u := federate(t, func(dir files, f *identity.Federation) { f.File = dir.path("nothing") })
	peer := u.root.issue(t, worker)
	if err := os.Remove(u.files.path("bundle.pem")); err != nil {
		t.Fatal(err)
	}
	u.eventually("it is said", func() bool { return u.says("bundle.pem: no such file") })
	u.pass(identity.DefaultMaxAge)
	if !u.believes(peer) {
		t.Error("before MaxAge ours is refused")
	}
	u.pass(time.Second)
	u.eventually("past MaxAge ours is refused", func() bool { return !u.believes(peer) })
	if _, err := u.GetX509SVID(); err != nil || !u.holds(ours) {
		t.Errorf("our SVID: %v; held are %v", err, u.Held())
	}
	u.files.write("bundle.pem", certPEM(u.root.cert.Raw))
	u.eventually("it is back", func() bool { return u.believes(peer) })
}

// While the agent is away its bundles grow old; once it is back they are good again.
func TestAgentAwayForTooLong(t *testing.T) {
	ca, partner, dir := newCA(t, ours), newCA(t, theirs), t.TempDir()
	api, addr, stop := agent(t, ca, dir)
	api.Federate(partner.Bundle())
	said, at := &log{}, &clock{}
	source := identity.FromWorkloadAPI(addr, said.logger())
	source.Poll, source.MaxAge, source.Now = poll, identity.MinMaxAge, at.now
	runSource(t, source)
	wait(t, source)
	waitFor(t, source, theirs)
	at.set(time.Now().Add(10 * identity.MinMaxAge))
	looked := source.Generation()
	if err := api.Rotate(spiffeid.RequireFromString(brokerID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new generation", func() bool { return source.Generation() > looked })
	if !trusts(source, theirs) {
		t.Error("an agent that is there has nothing to say, and its bundles grow old")
	}
	stop()
	eventually(t, "it is noticed that the agent is away", func() bool { return len(said.warnings()) > 0 })
	at.set(at.now().Add(identity.MinMaxAge + time.Second))
	eventually(t, "nobody is trusted", func() bool { return !trusts(source, theirs) && !trusts(source, ours) })
	back, _, _ := agent(t, ca, dir)
	back.Federate(partner.Bundle())
	eventually(t, "the agent is back", func() bool { return trusts(source, theirs) && trusts(source, ours) })
}

// What is configured is trusted by that alone, and nobody configures our own trust domain.
func TestConfigurationDecides(t *testing.T) {
	ca, partner, delivered := newCA(t, ours), newAuthority(t), newCA(t, theirs)
	api, addr, _ := agent(t, ca, t.TempDir())
	api.Federate(delivered.Bundle(), newCA(t, "third.example").Bundle())
	dir, said := files{t, t.TempDir()}, &log{}
	source := identity.FromWorkloadAPI(addr, said.logger())
	source.Poll = poll
	if err := source.Federate(
		identity.Federation{TrustDomain: theirs, File: dir.path("partner")},
		identity.Federation{TrustDomain: ours, File: dir.path("partner")},
	); err != nil {
		t.Fatal(err)
	}
	runSource(t, source)
	wait(t, source)
	waitFor(t, source, "third.example")
	if trusts(source, theirs) {
		t.Error("before the configured bundle is there, the delivered one is trusted")
	}
	dir.write("partner", certPEM(partner.cert.Raw))
	waitFor(t, source, theirs)
	for name, c := range map[string]struct {
		peer svid
		good bool
	}{
		"the configured bundle's":     {partner.issue(t, partnerWorker), true},
		"the delivered bundle's":      {issued(t, delivered, partnerWorker), false},
		"ours":                        {issued(t, ca, worker), true},
		"ours by a configured bundle": {partner.issue(t, worker), false},
	} {
		if _, err := source.Verify(c.peer.certs(), time.Now()); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	eventually(t, "it is said", func() bool {
		return strings.Contains(strings.Join(said.warnings(), ""), "our own trust domain")
	})
}

func TestFederationNamesWhatIsWrong(t *testing.T) {
	good := map[string]identity.Federation{
		"file":         {TrustDomain: theirs, File: "f"},
		"https_web":    {TrustDomain: theirs, URL: "https://a.example/x?y", Profile: identity.HTTPSWeb},
		"https_spiffe": {TrustDomain: theirs, URL: "https://a.example", Profile: identity.HTTPSSPIFFE, EndpointID: endpointID, Bootstrap: "f"},
	}
	for _, c := range []struct {
		of   string
		edit func(f *identity.Federation)
		want string // "" is good
	}{
		{"file", func(f *identity.Federation) {}, ""},
		{"https_web", func(f *identity.Federation) {}, ""},
		{"https_web", func(f *identity.Federation) { f.CAFile = "f" }, ""},
		{"https_spiffe", func(f *identity.Federation) {}, ""},
		{"file", func(f *identity.Federation) { f.TrustDomain = "" }, "TrustDomain is"},
		{"file", func(f *identity.Federation) { f.TrustDomain = "Partner.Example" }, "TrustDomain is"},
		{"file", func(f *identity.Federation) { f.TrustDomain = "spiffe://" + theirs }, "TrustDomain is"},
		{"file", func(f *identity.Federation) { f.TrustDomain = strings.Repeat("d", identity.MaxTrustDomain) }, ""},
		{"file", func(f *identity.Federation) { f.TrustDomain = strings.Repeat("d", identity.MaxTrustDomain+1) }, "TrustDomain has 256"},
		{"file", func(f *identity.Federation) { f.URL = "https://a.example" }, "File is set"},
		{"file", func(f *identity.Federation) { f.File = "" }, "File is missing"},
		{"file", func(f *identity.Federation) { f.Profile = identity.HTTPSWeb }, "Profile is for a URL"},
		{"file", func(f *identity.Federation) { f.Bootstrap = "f" }, "Bootstrap is for a URL"},
		{"file", func(f *identity.Federation) { f.MaxAge = identity.MinMaxAge }, ""},
		{"file", func(f *identity.Federation) { f.MaxAge = identity.MinMaxAge - 1 }, "MaxAge is"},
		{"file", func(f *identity.Federation) { f.MaxAge = identity.MaxMaxAge }, ""},
		{"file", func(f *identity.Federation) { f.MaxAge = identity.MaxMaxAge + 1 }, "MaxAge is"},
		{"https_web", func(f *identity.Federation) { f.URL = "http://a.example" }, "URL is"},
		{"https_web", func(f *identity.Federation) { f.URL = "https://u:p@a.example" }, "URL is"},
		{"https_web", func(f *identity.Federation) { f.URL = "https:///x" }, "URL is"},
		{"https_web", func(f *identity.Federation) { f.URL = "https://a.example/#x" }, "URL is"},
		{"https_web", func(f *identity.Federation) { f.Profile = "" }, "Profile is"},
		{"https_web", func(f *identity.Federation) { f.EndpointID = endpointID }, "EndpointID is for https_spiffe"},
		{"https_spiffe", func(f *identity.Federation) { f.EndpointID = "" }, "EndpointID is"},
		{"https_spiffe", func(f *identity.Federation) { f.EndpointID = "spiffe://" + theirs }, "EndpointID is"},
		{"https_spiffe", func(f *identity.Federation) { f.EndpointID = worker }, "EndpointID is"},
		{"https_spiffe", func(f *identity.Federation) { f.Bootstrap = "" }, "Bootstrap is"},
		{"https_spiffe", func(f *identity.Federation) { f.CAFile = "f" }, "CAFile is for https_web"},
	} {
		f := good[c.of]
		c.edit(&f)
		source := identity.FromWorkloadAPI("", nil)
		err := source.Federate(identity.Federation{TrustDomain: "first.example", File: "f"}, f)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "federation 1: ")) {
			t.Errorf("%+v: %v; want %q", f, err, c.want)
		}
	}
}

func TestFederationIsBounded(t *testing.T) {
	var all []identity.Federation
	for i := range identity.MaxFederated + 1 {
		all = append(all, identity.Federation{TrustDomain: fmt.Sprintf("d%d.example", i), File: "f"})
	}
	source := identity.FromWorkloadAPI("", nil)
	if err := source.Federate(all[1:]...); err != nil {
		t.Error(err)
	}
	if err := source.Federate(all...); err == nil || !strings.Contains(err.Error(), "at most 100") {
		t.Errorf("one more: %v", err)
	}
	if err := source.Federate(all[0], all[0]); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("one twice: %v", err)
	}
	source.MaxAge = identity.MinMaxAge - 1
	if err := source.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "MaxAge") {
		t.Errorf("Run: %v", err)
	}
	if err := source.Federate(); err == nil {
		t.Error("after Run it is too late")
	}
}

func TestBundleIsBounded(t *testing.T) {
	authorities := many(t, identity.MaxAuthorities+1)
	most, tooMany := jwks(t, 1, authorities[1:]...), jwks(t, 1, authorities...)
	pad := func(n int) []byte { return slices.Concat(most, bytes.Repeat([]byte(" "), n-len(most))) }
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"64 authorities":     {most, ""},
		"65":                 {tooMany, "at most 64"},
		"a mebibyte":         {pad(identity.MaxBundle), ""},
		"a mebibyte and one": {pad(identity.MaxBundle + 1), "larger than"},
		"PEM of 65":          {certPEM(raw(authorities)...), "at most 64"},
	} {
		b, err := identity.ParseBundle(partnerDomain, c.text)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if err == nil && len(b.X509Authorities()) != identity.MaxAuthorities {
			t.Errorf("%s: %d authorities", name, len(b.X509Authorities()))
		}
	}
}

func raw(certs []*x509.Certificate) (all [][]byte) {
	for _, c := range certs {
		all = append(all, c.Raw)
	}
	return all
}

// FuzzBundle: whatever a file has, there is no panic, and what is taken are authorities of the trust
// domain that was asked for, in bounds.
func FuzzBundle(f *testing.F) {
	root := newAuthority(f)
	f.Add(certPEM(root.cert.Raw))
	f.Add(jwks(f, 1, root.cert))
	f.Add(jwks(f, 1, root.issue(f, worker).certs()[0]))
	for _, text := range []string{"", "{}", ` {"keys":[]}`, `{"keys":null}`, `{"keys":[{"kty":"new","use":"x509-svid"}]}`, `{"keys":[],"spiffe_refresh_hint":9223372036854775807}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := identity.ParseBundle(partnerDomain, text)
		if err != nil {
			return
		}
		authorities := b.X509Authorities()
		if b.TrustDomain() != partnerDomain || len(authorities) > identity.MaxAuthorities || len(text) > identity.MaxBundle {
			t.Errorf("%s with %d authorities from %d bytes", b.TrustDomain(), len(authorities), len(text))
		}
		for _, a := range authorities {
			if !a.IsCA {
				t.Error("not an authority")
			}
		}
	})
}
