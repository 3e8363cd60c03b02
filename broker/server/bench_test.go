package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
)

// cpu is the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rawSignature is the processor time of one P-256 signature on this machine, now.
func rawSignature(b *testing.B) time.Duration {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("one raw signature"))
	const n = 500
	before := cpu(b)
	for range n {
		if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
			b.Fatal(err)
		}
	}
	return (cpu(b) - before) / n
}

// measure runs f b.N times and reports the processor time beside that of a raw signature in the same
// run.
func measure(b *testing.B, f func()) {
	b.Helper()
	raw := rawSignature(b)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	for range b.N {
		f()
	}
	each := (cpu(b) - before) / time.Duration(b.N)
	b.StopTimer()
	b.ReportMetric(float64(each.Microseconds()), "cpu-µs/op")
	b.ReportMetric(float64(each)/float64(raw), "raw-signatures/op")
}

// BenchmarkRawSignature is the yardstick.
func BenchmarkRawSignature(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("one raw signature"))
	measure(b, func() {
		if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkVerify checks a token of the broker offline, deny list included.
func BenchmarkVerify(b *testing.B) {
	r := start(b)
	v := r.verifier()
	c, peer := r.bearer(reportID)
	token := c.begin().Tokens[0].AccessToken
	measure(b, func() {
		if _, err := v.Verify(b.Context(), token, peer, verify.Scope("orders:read")); err != nil {
			b.Fatal(err)
		}
	})
}
