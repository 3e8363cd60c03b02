package sdk

import (
	"context"
	"math/rand/v2"
	"time"
)

// instant is one moment on both clocks. The steady one never jumps, but on Linux it stands still
// while the machine sleeps; the wall clock goes on then, but may be set.
type instant struct {
	steady time.Time // with a monotonic reading
	wall   time.Time // without
}

func clock() instant {
	now := time.Now()
	return instant{steady: now, wall: now.Round(0)}
}

// since is the time from then to i on each clock.
func (i instant) since(then instant) (steady, wall time.Duration) {
	return i.steady.Sub(then.steady), i.wall.Sub(then.wall)
}

// jitter is d ± 10 %, so that clients that began together do not stay together.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5+1)
}

// sleep returns the cause of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
