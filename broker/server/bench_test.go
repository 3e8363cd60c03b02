package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
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
// run. The client's share is in it: both ends are in this process.
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

// maxRuns keeps a benchmark within a workload's default quotas.
const maxRuns = 900

func bounded(b *testing.B) {
	b.Helper()
	if b.N > maxRuns {
		b.Fatalf("%d runs; use -benchtime %dx at most", b.N, maxRuns)
	}
}

// BenchmarkIssue gets a further token in a task, over mutual TLS, audit log on the disk included.
func BenchmarkIssue(b *testing.B) {
	bounded(b)
	r := start(b)
	c := r.client(reportID)
	var begun wire.BeginResponse
	c.post(wire.PathTasks, beginBody).into(b, &begun)
	measure(b, func() {
		if a := c.post(taskPath(begun.Task.ID, "/tokens"), `{"audience":"orders"}`); a.status != http.StatusOK {
			b.Fatalf("%d %s", a.status, a.body)
		}
	})
}

// BenchmarkBeginIssueEnd is the whole life of a task with one token, in two requests.
func BenchmarkBeginIssueEnd(b *testing.B) {
	r := start(b)
	c := r.client(reportID)
	measure(b, func() {
		var begun wire.BeginResponse
		c.post(wire.PathTasks, beginBody).into(b, &begun)
		if a := c.end(begun.Task.ID, "completed"); a.status != http.StatusOK {
			b.Fatalf("%d %s", a.status, a.body)
		}
	})
}

// BenchmarkEnd ends a task that has one token.
func BenchmarkEnd(b *testing.B) {
	bounded(b)
	r := start(b)
	c := r.client(reportID)
	ids := make([]string, b.N)
	for i := range ids {
		var begun wire.BeginResponse
		c.post(wire.PathTasks, beginBody).into(b, &begun)
		ids[i] = begun.Task.ID
	}
	next := 0
	measure(b, func() {
		if a := c.end(ids[next], "completed"); a.status != http.StatusOK {
			b.Fatalf("%d %s", a.status, a.body)
		}
		next++
	})
}

// BenchmarkVerify checks a token of the broker offline, deny list included.
func BenchmarkVerify(b *testing.B) {
	r := start(b)
	v := r.verifier()
	c, peer := r.bearer(reportID)
	token := c.begin().Tokens[0].AccessToken
	measure(b, func() {
		if _, err := v.Verify(b.Context(), token, peer, "orders:read"); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkEndToRefused is the time from the answer to an end until a connected verifier refuses.
func BenchmarkEndToRefused(b *testing.B) {
	r := start(b)
	v := r.verifier()
	c, peer := r.bearer(reportID)
	var total, slowest time.Duration
	for range b.N {
		begun := c.begin()
		c.end(begun.Task.ID, "completed")
		answered := time.Now()
		for {
			if _, err := v.Verify(b.Context(), begun.Tokens[0].AccessToken, peer); err != nil {
				break
			}
		}
		took := time.Since(answered)
		total, slowest = total+took, max(slowest, took)
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms-to-refused")
	b.ReportMetric(float64(slowest.Microseconds())/1000, "ms-slowest")
}
