package identity_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"testing"
	"time"
)

// authority is a CA that signs whatever a test asks for.
type authority struct {
	cert  *x509.Certificate
	key   crypto.Signer
	above [][]byte // the intermediates' DER from this one up, without the root; empty for a root
}

// edit changes a certificate before it is signed.
type edit = func(*x509.Certificate)

func newAuthority(t testing.TB, edits ...edit) authority {
	t.Helper()
	// Ed25519, so that sizes are the same in every run.
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := authorityTemplate(edits)
	return authority{cert: sign(t, template, template, key.Public(), key), key: key}
}

func authorityTemplate(edits []edit) *x509.Certificate {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "authority " + rand.Text()},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(1000 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

// below makes an intermediate.
func (a authority) below(t testing.TB, edits ...edit) authority {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := sign(t, authorityTemplate(edits), a.cert, key.Public(), a.key)
	return authority{cert: cert, key: key, above: append([][]byte{cert.Raw}, a.above...)}
}

// svid is what a peer presents.
type svid struct {
	chain [][]byte // DER, leaf first
	key   crypto.Signer
}

// issue makes an SVID with one URI name, written as it is.
func (a authority) issue(t testing.TB, id string, edits ...edit) svid {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a.issueFor(t, key.Public(), key, id, edits...)
}

// issueFor is issue for a key of any kind; private may be nil when nobody connects with it.
func (a authority) issueFor(t testing.TB, public any, private crypto.Signer, id string, edits ...edit) svid {
	t.Helper()
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	names(uri(id))(template)
	for _, e := range edits {
		e(template)
	}
	template.Issuer = a.cert.Subject
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return svid{chain: append([][]byte{der}, a.above...), key: private}
}

func sign(t testing.TB, template, parent *x509.Certificate, public, key any) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// names sets the subject alternative names, however wrong they are.
func names(list ...asn1.RawValue) edit {
	return func(c *x509.Certificate) {
		value, err := asn1.Marshal(list)
		if err != nil {
			panic(err)
		}
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
	}
}

func uri(id string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(id)}
}

func dns(name string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(name)}
}

// pad adds an extension of n bytes that means nothing.
func pad(n int) edit {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
			Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: bytes.Repeat([]byte{1}, n),
		})
	}
}

// certs parses the chain, and returns nil when crypto/x509 will not.
func (i svid) certs() []*x509.Certificate {
	var certs []*x509.Certificate
	for _, der := range i.chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil
		}
		certs = append(certs, c)
	}
	return certs
}

func (i svid) tls() tls.Certificate {
	return tls.Certificate{Certificate: i.chain, PrivateKey: i.key}
}

// pem returns the chain and the key as files have them.
func (i svid) pem(t testing.TB) (chain, key []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return certPEM(i.chain...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func certPEM(chain ...[]byte) []byte {
	var text []byte
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}
