package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
)

// case_ is a certificate chain and what is wrong with it; "" means nothing.
type case_ struct {
	name string
	peer svid
	want string // in the text of Verify's error
}

// check presents every chain in a handshake, where its owner has a key, and to Verify.
func (h *house) check(t *testing.T, cases []case_) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inner := *h.on(t)
			certs := c.peer.certs()
			switch {
			case certs == nil && c.want != unparsable:
				t.Fatal("crypto/x509 cannot parse the chain; the case does not test what it says")
			case certs != nil:
				inner.verify(certs, c.want)
			}
			if c.peer.key == nil {
				return
			}
			config := inner.config(&c.peer)
			if c.want != "" {
				inner.refuses(config)
			} else if got, err := inner.call(config); err != nil || !strings.HasPrefix(got, "spiffe://") {
				t.Errorf("refused: %q, %v", got, err)
			}
		})
	}
}

// unparsable is what is wrong with a chain that crypto/x509 refuses by itself.
const unparsable = "unparsable"

// on is the same house with another test to report to.
func (h *house) on(t testing.TB) *house {
	return &house{t: t, root: h.root, partner: h.partner, files: h.files, clock: h.clock, source: h.source, addr: h.addr}
}

func (h *house) verify(certs []*x509.Certificate, want string) {
	h.t.Helper()
	w, err := h.source.Verify(certs, time.Now())
	switch {
	case want == "" && err != nil:
		h.t.Errorf("Verify: %v", err)
	case want != "" && (!errors.Is(err, identity.ErrIdentity) || !strings.Contains(err.Error(), want)):
		h.t.Errorf("Verify says %v; want %q", err, want)
	case want != "" && !w.ID.IsZero():
		h.t.Errorf("Verify names %s beside its error", w.ID)
	}
}

func usage(u x509.KeyUsage) edit { return func(c *x509.Certificate) { c.KeyUsage = u } }

// mild sets a key usage without marking it critical, which crypto/x509 does by itself.
func mild(u x509.KeyUsage) edit {
	return func(c *x509.Certificate) {
		usage := asn1.BitString{Bytes: []byte{bits.Reverse8(byte(u))}, BitLength: 8}
		value, err := asn1.Marshal(usage)
		if err != nil {
			panic(err)
		}
		c.KeyUsage = 0
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: value})
	}
}

func uses(u ...x509.ExtKeyUsage) edit { return func(c *x509.Certificate) { c.ExtKeyUsage = u } }

func lives(from, to time.Duration) edit {
	return func(c *x509.Certificate) {
		now := time.Now().Truncate(time.Second)
		c.NotBefore, c.NotAfter = now.Add(from), now.Add(to)
	}
}

func authorityFlag(c *x509.Certificate) { c.IsCA = true }

func TestWorkload(t *testing.T) {
	h := newHouse(t, nil)
	peer := h.root.issue(t, worker)
	got, err := h.call(h.config(&peer))
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(peer.chain[0])
	want := worker + " " + base64.RawURLEncoding.EncodeToString(hash[:]) + " "
	if !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q and an address", got, want)
	}
	if host, _, err := net.SplitHostPort(strings.TrimPrefix(got, want)); err != nil || host != "127.0.0.1" {
		t.Errorf("the address is %q", strings.TrimPrefix(got, want))
	}
	w, err := h.source.Verify(peer.certs(), time.Now())
	if err != nil || !w.NotAfter.Equal(peer.certs()[0].NotAfter) {
		t.Errorf("NotAfter is %v, %v", w.NotAfter, err)
	}
}

// The numbers are those of the family of bad inputs that this comes from: TLS and SVIDs.
func TestSVIDs(t *testing.T) {
	h := newHouse(t, nil)
	root := h.root
	stranger := newAuthority(t)
	h.check(t, []case_{
		{"06 expired leaf", root.issue(t, worker, lives(-time.Hour, -time.Second)), "expired"},
		{"07 not yet valid", root.issue(t, worker, lives(time.Hour, 2*time.Hour)), "not yet valid"},
		{"08 unknown CA", stranger.issue(t, worker), "unknown authority"},
		{"09 unknown trust domain", root.issue(t, "spiffe://elsewhere.example/worker"), "no X.509 bundle"},
		{"12 leaf is a CA", root.issue(t, worker, authorityFlag), "CA flag"},
		{"13 keyCertSign", root.issue(t, worker, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign)), "KeyCertSign"},
		{"14 cRLSign", root.issue(t, worker, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCRLSign)), "KeyCrlSign"},
		{"15 no digitalSignature", root.issue(t, worker, usage(x509.KeyUsageKeyAgreement)), "digitalSignature"},
		{"15 no key usage at all", root.issue(t, worker, usage(0)), "digitalSignature"},
		{"15 key usage that is not critical", root.issue(t, worker, mild(x509.KeyUsageDigitalSignature)), ""},
		{"15 the same without digitalSignature", root.issue(t, worker, mild(x509.KeyUsageKeyAgreement)), "digitalSignature"},
		{"13 the same with keyCertSign", root.issue(t, worker, mild(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign)), "KeyCertSign"},
		{"34 serverAuth only", root.issue(t, worker, uses(x509.ExtKeyUsageServerAuth)), "clientAuth"},
		{"34 any use", root.issue(t, worker, uses(x509.ExtKeyUsageAny)), "clientAuth"},
		{"34 unknown use", root.issue(t, worker, uses(), func(c *x509.Certificate) {
			c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}}
		}), "clientAuth"},
		{"34 clientAuth only", root.issue(t, worker, uses(x509.ExtKeyUsageClientAuth)), ""},
		{"34 no restriction", root.issue(t, worker, uses()), ""},
		{"40 ten years", root.issue(t, worker, lives(-time.Minute, 87600*time.Hour)), "lives for"},
		{"40 the longest life", root.issue(t, worker, lives(-time.Hour, identity.DefaultMaxSVIDLife-time.Hour)), ""},
		{"40 a second more", root.issue(t, worker, lives(-time.Hour, identity.DefaultMaxSVIDLife-time.Hour+time.Second)), "lives for"},
	})
}

func TestMaxSVIDLifeIsConfigurable(t *testing.T) {
	h := newHouse(t, nil)
	certs := h.root.issue(t, worker, lives(0, 10*time.Minute)).certs()
	shorter := fromFiles(h.files.path("svid.pem"), h.files.path("svid.pem"), h.files.path("bundle.pem"), nil)
	shorter.MaxSVIDLife = 10*time.Minute - time.Second
	runSource(t, shorter)
	wait(t, shorter)
	if _, err := shorter.Verify(certs, time.Now()); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("a life beyond MaxSVIDLife: %v", err)
	}
	h.verify(certs, "")
}

func TestSPIFFEIDs(t *testing.T) {
	longest, longer := strings.Repeat("d", identity.MaxTrustDomain), strings.Repeat("d", identity.MaxTrustDomain+1)
	h, long := newHouse(t, nil), newAuthority(t)
	wide := newHouse(t, map[string]authority{longest: long})
	id := func(text string) svid { return h.root.issue(t, text) }
	prefix := "spiffe://" + ours + "/"
	h.check(t, []case_{
		{"16 two URI names", h.root.issue(t, worker, names(uri(worker), uri(worker+"2"))), "2 URI names"},
		{"16 the same name twice", h.root.issue(t, worker, names(uri(worker), uri(worker))), "2 URI names"},
		{"17 none, the ID is the common name", h.root.issue(t, worker, names(dns("a.example")), func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: worker}
		}), "0 URI names"},
		{"17 no names at all", h.root.issue(t, worker, func(c *x509.Certificate) { c.ExtraExtensions = nil }), "0 URI names"},
		{"18 the ID is a DNS name", h.root.issue(t, worker, names(dns(worker))), "0 URI names"},
		{"18 a DNS name beside the ID", h.root.issue(t, worker, names(dns("worker.example"), uri(worker))), ""},
		{"19 scheme in upper case", id("SPIFFE://" + ours + "/worker"), "scheme"},
		{"20 http", id("http://" + ours + "/worker"), "scheme"},
		{"21 root path", id("spiffe://" + ours), "has no path"},
		{"22 root path with a slash", id("spiffe://" + ours + "/"), "slash"},
		{"23 empty segment", id(prefix + "a//b"), "empty"},
		{"23 slash at the end", id(prefix + "worker/"), "slash"},
		{"24 dot segments", id(prefix + "worker/../admin"), "dot segment"},
		{"25 encoded dots", id(prefix + "worker/%2e%2e/admin"), "path"},
		{"25 encoded slash", id(prefix + "worker%2fadmin"), "path"},
		{"26 trust domain in upper case", id("spiffe://Example.org/worker"), "trust domain"},
		{"27 port", id("spiffe://" + ours + ":443/worker"), "trust domain"},
		{"28 user", id("spiffe://admin@" + ours + "/worker"), "trust domain"},
		{"28 empty user", id("spiffe://@" + ours + "/worker"), "trust domain"},
		{"29 query", id(worker + "?a=b"), "path"},
		{"29 empty query", id(worker + "?"), "path"},
		{"30 fragment", id(worker + "#a"), "path"},
		{"30 empty fragment", id(worker + "#"), "path"},
		{"31 the longest ID", id(prefix + strings.Repeat("p", identity.MaxID-len(prefix))), ""},
		{"31 one byte more", id(prefix + strings.Repeat("p", identity.MaxID-len(prefix)+1)), "2049 bytes"},
		{"33 not ASCII", id(prefix + "wörker"), unparsable},
		{"33 NUL", id(worker + "\x00.evil.example"), unparsable},
		{"33 space", id(prefix + "a b"), "path"},
		{"33 backslash", id(prefix + `a\b`), "path"},
		{"33 empty", id(""), "empty"},
	})
	wide.check(t, []case_{{"32 the longest trust domain", long.issue(t, "spiffe://"+longest+"/worker"), ""}})
	wide.check(t, []case_{{"32 one byte more", long.issue(t, "spiffe://"+longer+"/worker"), "256 bytes"}})
}

// CVE-2024-45341, CVE-2025-47912: hosts in brackets were parsed as what they are not.
func TestCVE_2024_45341_AddressesAsTrustDomain(t *testing.T) {
	h := newHouse(t, nil)
	for _, host := range []string{"[::1]", "[fe80::1%25eth0]", "[fe80::1%25" + ours + "]", "[" + ours + "]", ours + "%00", "[::1]." + ours, "[::1"} {
		peer := h.root.issue(t, "spiffe://"+host+"/worker")
		if certs := peer.certs(); certs != nil {
			h.verify(certs, "trust domain")
		}
		h.refuses(h.config(&peer))
	}
}

func TestTrustDomainsAreApart(t *testing.T) {
	h := newHouse(t, nil)
	pooled := h.partner
	pooled.above = [][]byte{h.partner.cert.Raw, h.root.cert.Raw}
	h.check(t, []case_{
		{"each its own", h.partner.issue(t, "spiffe://"+theirs+"/worker"), ""},
		{"10 a federated CA signs our domain", h.partner.issue(t, worker), "unknown authority"},
		{"10 and sends both roots along", pooled.issue(t, worker), "unknown authority"},
		{"11 our CA signs a federated domain", h.root.issue(t, "spiffe://"+theirs+"/worker"), "unknown authority"},
		{"11 with an intermediate", h.root.below(t).issue(t, "spiffe://"+theirs+"/worker"), "unknown authority"},
	})
}

// CVE-2024-2048 and CVE-2025-6037: a certificate that is no authority's was trusted because it was
// among the trusted ones, and others because they looked like it.
func TestCVE_2024_2048_LeafInTheBundle(t *testing.T) {
	ca := newAuthority(t)
	trusted := ca.issue(t, worker)
	// Only the Workload API can bring such a bundle; files with it are refused.
	api := newFakeAgent(t)
	own := ca.issue(t, brokerID)
	api.send(own, trusted.chain[0])
	source := identity.FromWorkloadAPI(api.addr, nil)
	runSource(t, source)
	wait(t, source)
	if _, err := source.Verify(trusted.certs(), time.Now()); !errors.Is(err, identity.ErrIdentity) || !strings.Contains(err.Error(), "no authority") {
		t.Errorf("a leaf that is itself in the bundle: %v", err)
	}
	h := newHouse(t, nil)
	serial := h.root.cert.SerialNumber
	impostor := newAuthority(t, func(c *x509.Certificate) { c.Subject = h.root.cert.Subject; c.SerialNumber = serial })
	peer := impostor.issue(t, worker)
	h.verify(peer.certs(), "unknown authority")
	h.refuses(h.config(&peer))
}

func TestChains(t *testing.T) {
	h := newHouse(t, nil)
	chain := func(length int) authority {
		a := h.root
		for range length - 1 {
			a = a.below(t)
		}
		return a
	}
	notCA := h.root.below(t, func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = x509.KeyUsageDigitalSignature })
	expired := h.root.below(t, lives(-time.Hour, -time.Minute))
	many := h.root.issue(t, worker)
	for range 199 {
		many.chain = append(many.chain, h.root.cert.Raw)
	}
	h.check(t, []case_{
		{"35 the longest chain", chain(identity.MaxChain).issue(t, worker), ""},
		{"35 one more", chain(identity.MaxChain+1).issue(t, worker), "5 certificates"},
		{"35 ten", chain(10).issue(t, worker), "10 certificates"},
		{"35 two hundred", many, "200 certificates"},
		{"37 intermediate is no CA", notCA.issue(t, worker), "unknown authority"},
		{"38 intermediate expired", expired.issue(t, worker), "expired"},
		{"an intermediate that is missing", svid{h.root.below(t).issue(t, worker).chain[:1], nil}, "unknown authority"},
		{"an intermediate for servers only", h.root.below(t, uses(x509.ExtKeyUsageServerAuth)).issue(t, worker), "no authority"},
		{"an intermediate for clients", h.root.below(t, uses(x509.ExtKeyUsageClientAuth)).issue(t, worker), ""},
		{"an intermediate for any use", h.root.below(t, uses(x509.ExtKeyUsageAny)).issue(t, worker), ""},
		{"something else behind the leaf", svid{append(h.root.issue(t, worker).chain, h.partner.cert.Raw), nil}, ""},
	})
}

// CVE-2025-58187, CVE-2026-32280 and -32281: chains that are dear to check. Whoever signed them, it
// is their size that they are refused for, so no signature and no constraint was looked at.
func TestCVE_2025_58187_HostileChains(t *testing.T) {
	h := newHouse(t, nil)
	stranger := newAuthority(t)
	sized := func(a authority, bytes int) svid {
		// The leaf's key and the signature are of Ed25519, and the serial number has a fixed
		// length, so the size follows from the padding but for the length octets of DER.
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		issue := func(n int) svid {
			return a.issueFor(t, public, private, worker, pad(n), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1 << 40) })
		}
		n := bytes - len(issue(bytes).chain[0]) + bytes
		return issue(n)
	}
	fits, more := sized(h.root, identity.MaxChainBytes), sized(h.root, identity.MaxChainBytes+1)
	if len(fits.chain[0]) != identity.MaxChainBytes || len(more.chain[0]) != identity.MaxChainBytes+1 {
		t.Fatalf("the chains have %d and %d bytes", len(fits.chain[0]), len(more.chain[0]))
	}
	bomb := stranger.below(t, func(c *x509.Certificate) {
		for i := range 3000 {
			c.PermittedURIDomains = append(c.PermittedURIDomains, fmt.Sprintf("d%d.example", i))
		}
	})
	h.check(t, []case_{
		{"35 the largest chain", fits, ""},
		{"35 one byte more", more, "16385 bytes"},
		{"35 a mebibyte", h.root.issue(t, worker, pad(1<<20)), "bytes; at most"},
		{"35 200 certificates of a stranger", svid{append(stranger.issue(t, worker).chain, bytesOf(stranger, 199)...), nil}, "200 certificates"},
		{"39 name constraints without end", bomb.issue(t, worker), "bytes; at most"},
	})
}

func bytesOf(a authority, n int) [][]byte {
	var chain [][]byte
	for range n {
		chain = append(chain, a.cert.Raw)
	}
	return chain
}

func TestKeys(t *testing.T) {
	h := newHouse(t, nil)
	ec := func(curve elliptic.Curve) svid {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return h.root.issueFor(t, key.Public(), key, worker)
	}
	modulus := func(bits uint) svid { // whose factors nobody knows, so nobody connects with it
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return h.root.issueFor(t, &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}, nil, worker)
	}
	realRSA := func(bits int) svid {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return h.root.issueFor(t, key.Public(), key, worker)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := h.root.issueFor(t, public, private, worker)
	ed448 := svid{chain: [][]byte{bytes.Replace(ec(elliptic.P256()).chain[0], []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1}, []byte{0x2b, 0x65, 0x71, 0xce, 0x3d, 2, 1}, 1)}}
	p224 := ec(elliptic.P224())
	p224.key = nil
	weakAbove := h.root.issue(t, worker)
	weakAbove.chain = append(weakAbove.chain, modulus(1024).chain[0])
	h.check(t, []case_{
		{"P-256", ec(elliptic.P256()), ""}, {"P-384", ec(elliptic.P384()), ""}, {"P-521", ec(elliptic.P521()), ""},
		{"Ed25519", ed, ""}, {"RSA-2048", realRSA(2048), ""},
		{"36 RSA-1024", realRSA(1024), "RSA key of 1024 bits"},
		{"36 RSA-2047", modulus(2047), "RSA key of 2047 bits"},
		{"36 RSA-8192", modulus(8192), ""},
		{"36 RSA-8193", modulus(8193), "RSA key of 8193 bits"},
		{"36 RSA-16384", modulus(16384), "RSA key of 16384 bits"},
		{"36 P-224", p224, "curve P-224"},
		{"36 an unknown algorithm", ed448, "not allowed"},
		{"36 RSA-1024 above the leaf", weakAbove, "certificate 1 of the chain"},
	})
	old := h.root.issue(t, worker).certs()
	old[0].PublicKey, old[0].PublicKeyAlgorithm = struct{ y int }{}, x509.DSA // crypto/x509 still reads it, and cannot write it
	h.verify(old, "not allowed (DSA)")
	h.verify(nil, "no client certificate")
}
