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
	"syscall"
	"time"
)

// yardstick is one raw P-256 signature.
type yardstick struct {
	cpu         time.Duration
	allocations uint64
}

// rawSignature measures while all processors sign, as they are all at work in the loads: a processor
// is slower when its neighbour is busy.
func rawSignature() yardstick {
	const n = 4000
	var all sync.WaitGroup
	before, used := heap(), ownTime()
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() { sign(n) })
	}
	all.Wait()
	total := n * runtime.GOMAXPROCS(0)
	return yardstick{(ownTime() - used) / time.Duration(total), (heap() - before) / uint64(total)}
}

func sign(n int) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	digest := sha256.Sum256([]byte("one raw signature"))
	for range n {
		if _, err := ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
			panic(err)
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
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
