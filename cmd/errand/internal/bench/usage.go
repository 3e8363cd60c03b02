package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// signFor is how long raw signatures are measured before each load and after it: long enough to be
// slowed down as the load is, by busy neighbours and by a host that shares its processors out.
const signFor = 700 * time.Millisecond

// rawSignature is the processor time of one P-256 signature while all processors sign, as they are all
// at work in the loads.
func rawSignature() time.Duration {
	var all sync.WaitGroup
	var n atomic.Int64
	before, until := ownTime(), time.Now().Add(signFor)
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() { n.Add(sign(until)) })
	}
	all.Wait()
	return (ownTime() - before) / time.Duration(n.Load())
}

func sign(until time.Time) (n int64) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	digest := sha256.Sum256([]byte("one raw signature"))
	for ; n == 0 || time.Now().Before(until); n++ {
		if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
			panic(err)
		}
	}
	return n
}

func ownTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// usage is what the processes have used since they were started.
type usage struct {
	broker, redis time.Duration
	allocations   float64 // of the broker
	requests      float64 // that the broker has answered
}

func (p *place) used() (u usage, err error) {
	if u.broker, err = processTime(p.broker.Process.Pid); err != nil {
		return u, err
	}
	if u.redis, err = processTime(p.redis.Process.Pid); err != nil {
		return u, err
	}
	text, err := p.ops("/metrics")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "go_memstats_mallocs_total "); ok {
			u.allocations, err = strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
		if _, value, ok := strings.Cut(line, "} "); ok && strings.HasPrefix(line, "errand_http_request_duration_seconds_count{") {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return u, err
			}
			u.requests += n
		}
	}
	return u, err
}

// tick is the unit of /proc, which Linux fixes at a hundredth of a second.
const tick = time.Second / 100

// processTime is the user and system time of another process (proc(5), fields 14 and 15 of stat).
func processTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("%w; this needs Linux", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	const user, system = 14 - 3, 15 - 3
	if len(fields) <= system {
		return 0, fmt.Errorf("/proc says %q", text)
	}
	u, errU := strconv.ParseInt(fields[user], 10, 64)
	s, errS := strconv.ParseInt(fields[system], 10, 64)
	if errU != nil || errS != nil {
		return 0, fmt.Errorf("/proc says %q", text)
	}
	return time.Duration(u+s) * tick, nil
}
