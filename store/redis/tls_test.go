package redis_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.file, _ = a.sign(a.cert)
	return a
}

// sign returns the files of a certificate and its key; the first one signed is the authority's own.
func (a *authority) sign(cert *x509.Certificate) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.key == nil {
		a.key = key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile = file(a.t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return certFile, file(a.t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
}

func (a *authority) leaf(use x509.ExtKeyUsage) (certFile, keyFile string) {
	return a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// TestTLS speaks to a real server that wants a client's certificate.
func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	serverCert, serverKey := ca.leaf(x509.ExtKeyUsageServerAuth)
	cert, key := ca.leaf(x509.ExtKeyUsageClientAuth)
	_, strange := other.leaf(x509.ExtKeyUsageClientAuth)
	port := redistest.FreePort(t)
	s := start(t, "--tls-port", fmt.Sprint(port), "--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", ca.file)
	url := fmt.Sprintf("rediss://127.0.0.1:%d", port)

	store := open(t, redis.Config{URL: url, CAFile: ca.file, CertFile: cert, KeyFile: key})
	end(t, store, completing(begin(t, store).Task.ID))

	for _, test := range []struct {
		name   string
		config redis.Config
		want   string
	}{
		{"another authority", redis.Config{URL: url, CAFile: other.file, CertFile: cert, KeyFile: key}, "Config.CAFile"},
		{"no authority", redis.Config{URL: url, CertFile: cert, KeyFile: key}, "Config.CAFile"},
		{"another name", redis.Config{URL: strings.Replace(url, "127.0.0.1", "localhost", 1), CAFile: ca.file, CertFile: cert, KeyFile: key}, "for its address"},
		{"no client's certificate", redis.Config{URL: url, CAFile: ca.file}, "Config.CertFile"},
		{"another key", redis.Config{URL: url, CAFile: ca.file, CertFile: cert, KeyFile: strange}, "Config.CertFile"},
		{"no key", redis.Config{URL: url, CAFile: ca.file, CertFile: cert}, "Config.CertFile"},
		{"no such authority", redis.Config{URL: url, CAFile: ca.file + "x"}, "Config.CAFile"},
		{"no PEM", redis.Config{URL: url, CAFile: file(t, "junk")}, "PEM"},
		{"a port without TLS", redis.Config{URL: strings.Replace(s.URL(), "redis", "rediss", 1), CAFile: ca.file}, "TLS"},
		{"no TLS on its port", redis.Config{URL: strings.Replace(url, "rediss", "redis", 1)}, "does not answer"},
		{"files without TLS", redis.Config{URL: s.URL(), CAFile: ca.file}, "rediss://"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var err error
			for range 5 { // a handshake may take too long on a busy machine
				var store *redis.Store
				if store, err = redis.New(t.Context(), test.config); err == nil {
					_ = store.Close()
				}
				if err == nil || strings.Contains(err.Error(), test.want) {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v; want an error with %q", err, test.want)
			}
		})
	}
}

// TestNewCertificate replaces the client's: connections that are made from then on show it.
func TestNewCertificate(t *testing.T) {
	t.Parallel()
	ca, next := newAuthority(t, "ca"), newAuthority(t, "next")
	serverCert, serverKey := ca.leaf(x509.ExtKeyUsageServerAuth)
	cert, key := ca.leaf(x509.ExtKeyUsageClientAuth)
	nextCert, nextKey := next.leaf(x509.ExtKeyUsageClientAuth)
	port := redistest.FreePort(t)
	s := start(t, "--tls-port", fmt.Sprint(port), "--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", ca.file)
	c := redis.Config{URL: fmt.Sprintf("rediss://127.0.0.1:%d", port), CAFile: ca.file, CertFile: cert, KeyFile: key}.Patient()
	store := open(t, c)
	begin(t, store)

	s.Must("CONFIG", "SET", "tls-ca-cert-file", next.file)
	s.Must("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
	for range 3 { // the first may find out that its connection has gone
		if _, err := store.Grant(t.Context(), beginning()); err == nil {
			t.Error("a begin with the old certificate has been let in")
		}
	}
	for from, to := range map[string]string{nextCert: cert, nextKey: key} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a begin with the new certificate", func() bool {
		_, err := store.Grant(t.Context(), beginning())
		return err == nil
	})
}

func TestUnixSocket(t *testing.T) {
	folder, err := os.MkdirTemp("", "redis") // t.TempDir may be longer than a socket's name can be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	socket := filepath.Join(folder, "socket")
	start(t, "--unixsocket", socket)
	store := open(t, redis.Config{URL: "unix://" + socket})
	end(t, store, completing(begin(t, store).Task.ID))
}
