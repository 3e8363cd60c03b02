package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
)

// anonymous takes the SPIFFE ID out of a certificate, and what says what it is for.
func anonymous(c *x509.Certificate) {
	c.ExtraExtensions, c.ExtKeyUsage, c.KeyUsage = nil, nil, 0
}

func (i svid) thumbprint() string {
	digest := sha256.Sum256(i.chain[0])
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// list is what has these certificates under the name ada.
func list(certificates ...svid) identity.Certificates {
	out := identity.Certificates{}
	for _, c := range certificates {
		out[c.thumbprint()] = "ada"
	}
	return out
}

// TestListedCertificates: a listed certificate is its operator, whoever signed it; all else needs a good SVID.
func TestListedCertificates(t *testing.T) {
	h := newHouse(t, nil)
	anybody := newAuthority(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	until := func(from, to time.Duration) edit {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
	}
	for name, test := range map[string]struct {
		of       svid
		want     string // the operator, or a part of the refusal
		unlisted bool
	}{
		"of any CA":            {of: anybody.issue(t, "", anonymous), want: "certificate:ada"},
		"with other names":     {of: anybody.issue(t, "", names(dns("ada.example"), uri("https://ada.example"))), want: "certificate:ada"},
		"for years":            {of: anybody.issue(t, "", anonymous, until(-time.Hour, 50_000*time.Hour)), want: "certificate:ada"},
		"of our CA":            {of: h.root.issue(t, "", anonymous), want: "certificate:ada"},
		"unlisted":             {of: anybody.issue(t, "", anonymous), unlisted: true, want: "is not listed under operators"},
		"unlisted, of our CA":  {of: h.root.issue(t, "", anonymous), unlisted: true, want: "is not listed under operators"},
		"expired":              {of: anybody.issue(t, "", anonymous, until(-2*time.Hour, -time.Second)), want: "and not now"},
		"not yet":              {of: anybody.issue(t, "", anonymous, until(time.Hour, 2*time.Hour)), want: "and not now"},
		"a small key":          {of: anybody.issueFor(t, small.Public(), nil, "", anonymous), want: "an RSA key of 1024 bits"},
		"an odd curve":         {of: anybody.issueFor(t, odd.Public(), nil, "", anonymous), want: "on the curve P-224"},
		"an SVID":              {of: h.root.issue(t, worker), want: worker},
		"an SVID, unlisted":    {of: h.root.issue(t, worker), unlisted: true, want: worker},
		"a forged SVID":        {of: anybody.issue(t, worker), want: "not a workload"},
		"a stranger's SVID":    {of: anybody.issue(t, "spiffe://elsewhere.example/x"), want: "not a workload"},
		"an SVID in capitals":  {of: anybody.issue(t, "SPIFFE://elsewhere.example/x"), want: "not a workload"},
		"an SVID among others": {of: anybody.issue(t, "", names(uri("https://ada.example"), uri("spiffe://elsewhere.example/x"))), want: "not a workload"},
		"a trust domain":       {of: anybody.issue(t, "spiffe://elsewhere.example"), want: "not a workload"},
		"nothing":              {want: "no client certificate"},
	} {
		var listed identity.Certificates
		if !test.unlisted && test.of.chain != nil {
			listed = list(test.of)
		}
		o, err := h.source.Operator(request(test.of), listed)
		if strings.Contains(test.want, " ") {
			if !errors.Is(err, identity.ErrIdentity) || !strings.Contains(err.Error(), test.want) || o.Name != "" {
				t.Errorf("%s: %+v, %v; want an error with %q", name, o, err, test.want)
			}
			continue
		}
		if err != nil || o.Name != test.want || o.Thumbprint != test.of.thumbprint() || o.Address != "192.0.2.1:4711" || o.Role != 0 {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
		if _, err := h.source.Workload(request(test.of)); (err == nil) != (test.want == worker) {
			t.Errorf("%s is a workload: %v", name, err)
		}
	}
	half := request(anybody.issue(t, "", anonymous))
	half.TLS.HandshakeComplete = false
	if _, err := h.source.Operator(half, list(svid{chain: [][]byte{half.TLS.PeerCertificates[0].Raw}})); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a handshake that is not complete: %v", err)
	}
	if _, err := h.source.Operator(&http.Request{}, nil); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a request without TLS: %v", err)
	}
	chained := svid{chain: append(anybody.issue(t, "", anonymous).chain, anybody.issue(t, "", anonymous).chain...)}
	if _, err := h.source.Operator(request(chained), list(svid{chain: chained.chain[1:]})); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a listed certificate that is not the leaf: %v", err)
	}
}

// operators is a house's listener for operators, which answers with their names.
func (h *house) operators(listed identity.Certificates) *house {
	o := &house{t: h.t, root: h.root, clock: h.clock, source: h.source}
	o.addr = serve(h.t, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who, err := h.source.Operator(r, listed)
			if err != nil {
				http.Error(w, err.Error(), http.StatusUnauthorized)
				return
			}
			io.WriteString(w, who.Name+" ")
		}),
		TLSConfig: identity.OperatorTLS(h.source, listed), ConnContext: identity.ConnContext,
	})
	return o
}

// TestOperatorListener: the handshake refuses what the list and the bundles do not know, and who has a listed
// certificate must have its key.
func TestOperatorListener(t *testing.T) {
	h := newHouse(t, nil)
	anybody := newAuthority(t)
	ada, other := anybody.issue(t, "", anonymous), anybody.issue(t, "", anonymous)
	old := anybody.issue(t, "", anonymous, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
	posing := anybody.issue(t, worker)
	stolen := svid{chain: ada.chain, key: other.key}
	o := h.operators(list(ada, old, posing))
	if got, err := o.call(o.config(&ada)); err != nil || got != "certificate:ada " {
		t.Fatalf("%q, %v", got, err)
	}
	for name, who := range map[string]*svid{"nobody": nil, "unlisted": &other, "expired": &old, "a listed forgery of an SVID": &posing, "without the key": &stolen} {
		t.Run(name, func(t *testing.T) {
			on := o.on(t)
			on.refuses(on.config(who))
		})
	}
	before := o.config(&ada)
	before.MinVersion, before.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	o.refuses(before)
	h.refuses(h.config(&ada)) // the workload listener

	resuming := o.config(&ada)
	resuming.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 2 {
		conn, err := tls.Dial("tcp", o.addr, resuming)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil || conn.ConnectionState().DidResume {
			t.Errorf("resumed: %v, %v", conn.ConnectionState().DidResume, err)
		}
		conn.Close()
	}
}

// TestListedCertificateExpires: a connection does not outlive the certificate.
func TestListedCertificateExpires(t *testing.T) {
	h := newHouse(t, nil)
	ada := newAuthority(t).issue(t, "", anonymous)
	o := h.operators(list(ada))
	client := o.client(o.config(&ada))
	if got, err := o.get(client); err != nil || got != "certificate:ada " {
		t.Fatalf("%q, %v", got, err)
	}
	expires := ada.certs()[0].NotAfter
	h.clock.set(expires)
	if got, err := o.get(client); err != nil {
		t.Errorf("in its last second: %q, %v", got, err)
	}
	h.clock.set(expires.Add(time.Nanosecond))
	if got, err := o.get(client); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") || !strings.Contains(err.Error(), "and not now") {
		t.Errorf("after its end: %q, %v", got, err)
	}
}

func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{
		"ada": true, "ada.l@example.org": true, "9": true, strings.Repeat("a", identity.MaxName): true,
		"": false, strings.Repeat("a", identity.MaxName+1): false, "a b": false, ".a": false, "a\n": false, "ä": false, "a/b": false, "a:b": false,
	} {
		if err := identity.CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzThumbprint: what is read is 32 bytes in one form, whichever it was written in, and nothing else is read.
func FuzzThumbprint(f *testing.F) {
	digest := sha256.Sum256([]byte("a certificate"))
	plain, b64 := hex.EncodeToString(digest[:]), base64.RawURLEncoding.EncodeToString(digest[:])
	pairs := make([]string, 0, len(digest))
	for i := range digest {
		pairs = append(pairs, plain[2*i:2*i+2])
	}
	colons := strings.ToUpper(strings.Join(pairs, ":"))
	for _, text := range []string{plain, strings.ToUpper(plain), b64, colons} {
		if got, err := identity.ParseThumbprint(text); err != nil || got != b64 {
			f.Errorf("%s: %q, %v", text, got, err)
		}
		f.Add(text)
	}
	for _, text := range []string{
		"", plain[2:], plain + "00", b64[1:], b64 + "=", b64 + "A", b64[:42] + "_", colons[:94] + ":", ":" + colons[1:], strings.Replace(colons, ":", "-", 1),
		colons[3:], "sha256 Fingerprint=" + colons, b64[:20] + "\n" + b64[20:], strings.Repeat("z", 64), " " + plain[1:],
	} {
		if got, err := identity.ParseThumbprint(text); err == nil {
			f.Errorf("%q is %q", text, got)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := identity.ParseThumbprint(text)
		if err != nil {
			return
		}
		raw, err := base64.RawURLEncoding.Strict().DecodeString(got)
		if err != nil || len(raw) != sha256.Size || len(got) != 43 {
			t.Fatalf("%q is %q: %v", text, got, err)
		}
		if text != got && !strings.EqualFold(strings.ReplaceAll(text, ":", ""), hex.EncodeToString(raw)) {
			t.Errorf("%q is %q", text, got)
		}
	})
}
