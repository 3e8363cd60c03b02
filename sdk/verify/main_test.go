package verify_test

import (
	"context"
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = p.Value.Set("8") // those that are parallel wait more than they work
	}
	goleak.VerifyTestMain(m)
}

// must is for calls that cannot fail in a test that is right: must(f())(tb).
func must[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return value
	}
}

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

// twice is for a start that is to fail: ctx ends with the second call of asked, when the verifier has
// taken in what became of the first.
func twice(tb testing.TB) (ctx context.Context, asked func()) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	tb.Cleanup(cancel)
	var n atomic.Int64
	return ctx, func() {
		if n.Add(1) > 1 {
			cancel()
		}
	}
}

// eventually polls until the condition holds.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			tb.Fatalf("it did not come to pass in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
