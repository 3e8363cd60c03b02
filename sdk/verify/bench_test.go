package verify_test

import (
	"crypto/ecdsa"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/errandhq/errand/sdk/verify"
)

// BenchmarkVerify checks one token, and says how much longer that takes than go-jose's bare
// verification of its signature, measured in turn with it.
func BenchmarkVerify(b *testing.B) {
	fake := newBroker(b, 1)
	v := fake.verifier(nil)
	token, peer, scope := fake.token(func(c map[string]any) { c["exp"] = time.Now().Unix() + 900 }), fake.peer(), verify.Scope("orders:read")
	public := fake.key.private.(*ecdsa.PrivateKey).Public()
	var ours, bare time.Duration
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		if _, err := v.Verify(b.Context(), token, peer, scope); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := jws.Verify(public); err != nil {
			b.Fatal(err)
		}
		ours, bare = ours+between.Sub(began), bare+time.Since(between)
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/check")
	b.ReportMetric(float64(bare.Nanoseconds())/float64(b.N), "ns/go-jose")
	b.ReportMetric(float64(ours)/float64(bare), "times-go-jose")
}
