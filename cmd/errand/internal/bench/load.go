package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// line is what one kind of request costs.
type line struct {
	what        string
	callers     int
	requests    int
	took        time.Duration
	times       durations
	broker      time.Duration // of processor time, for one request
	redis       time.Duration
	signature   time.Duration // of one raw signature, right before and right after
	allocations float64
	asked       float64 // requests that the broker has got for each
}

func (l line) row() string {
	return fmt.Sprintf("| %s | %d | %.0f | %s ms | %s ms | %.0f µs | %.0f µs | %.0f µs | %.1f | %.0f |", l.what, l.callers,
		float64(l.requests)/l.took.Seconds(), milli(l.times.at(50)), milli(l.times.at(99)),
		micro(l.signature), micro(l.broker), micro(l.redis), float64(l.broker+l.redis)/float64(l.signature), l.allocations)
}

// durations are sorted when they are read.
type durations []time.Duration

func (d durations) at(percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, len(d)*percent/100)]
}

// What is measured.
const (
	whatBegin = "begin with a token"
	whatToken = "a further token"
	whatEnd   = "end"
	whatDo    = "`sdk.Do` with one token"
	whatWho   = "for comparison: who am I"
)

const (
	beginBody = `{"name":"monthly-export","purpose":"FIN-212 month end","lease_seconds":60,"tokens":[{"audience":"orders","scopes":["orders:read"]}]}`
	tokenBody = `{"audience":"orders","scopes":["orders:read"]}`
	endBody   = `{"outcome":"completed","end_key":%q}`

	// settle is a pause before each load, for what the one before has left to do.
	settle = 300 * time.Millisecond
)

// caller is one kept-alive connection of the workload.
type caller struct {
	base string
	http *http.Client
}

func (p *place) caller() *caller {
	return &caller{p.at.Broker, &http.Client{Transport: &http.Transport{TLSClientConfig: p.client.Clone(), MaxIdleConnsPerHost: 1}, Timeout: 10 * time.Second}}
}

func (c *caller) close() { c.http.CloseIdleConnections() }

func (c *caller) post(ctx context.Context, path, body string, status int, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", wire.TypeJSON)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != status {
		return fmt.Errorf("%s: %d %s", path, resp.StatusCode, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

func (c *caller) get(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// read gets JSON.
func (c *caller) read(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %d", path, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func taskPath(id, rest string) string { return wire.PathTasks + "/" + id + rest }

// measure begins tasks with a token, issues further tokens, and ends the tasks; and asks for something
// that needs neither store nor signature, to show what HTTP and TLS cost.
func (p *place) measure(ctx context.Context, n int, o options) ([]line, error) {
	callers := make([]*caller, n)
	for i := range callers {
		callers[i] = p.caller()
		defer callers[i].close()
	}
	tasks := make([][]begunTask, n)
	begin := func(ctx context.Context, i int) error {
		task, err := callers[i].begin(ctx)
		tasks[i] = append(tasks[i], task)
		return err
	}
	if err := p.warm(ctx, n, begin); err != nil {
		return nil, err
	}
	p.profiled = ""
	if n == slices.Max(o.clients) {
		p.profiled = o.of
	}
	begun, err := p.load(ctx, whatBegin, n, o.length, begin)
	if err != nil {
		return nil, err
	}
	issued, err := p.load(ctx, whatToken, n, o.length, func(ctx context.Context, i int) error {
		return callers[i].post(ctx, taskPath(tasks[i][0].id, "/tokens"), tokenBody, http.StatusOK, nil)
	})
	if err != nil {
		return nil, err
	}
	ended, err := p.load(ctx, whatEnd, n, 10*o.length, func(ctx context.Context, i int) error {
		last := len(tasks[i]) - 1
		if last < 0 {
			return errDone
		}
		task := tasks[i][last]
		tasks[i] = tasks[i][:last]
		return callers[i].end(ctx, task)
	})
	if err != nil {
		return nil, err
	}
	done, err := p.do(ctx, n, o.length)
	if err != nil {
		return nil, err
	}
	asked, err := p.load(ctx, whatWho, n, o.length, func(ctx context.Context, i int) error {
		return callers[i].get(ctx, wire.PathWhoami)
	})
	return []line{begun, issued, ended, done, asked}, err
}

// begunTask is what it takes to end a task.
type begunTask struct{ id, endKey string }

func (c *caller) begin(ctx context.Context) (begunTask, error) {
	var out wire.BeginResponse
	err := c.post(ctx, wire.PathTasks, beginBody, http.StatusCreated, &out)
	return begunTask{out.Task.ID, out.EndKey}, err
}

func (c *caller) end(ctx context.Context, t begunTask) error {
	return c.post(ctx, taskPath(t.id, "/end"), fmt.Sprintf(endBody, t.endKey), http.StatusOK, nil)
}

// warm makes every connection before anything is measured.
func (p *place) warm(ctx context.Context, n int, once func(context.Context, int) error) error {
	for i := range n {
		if err := once(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

var errDone = fmt.Errorf("nothing left to do")

// load has n callers repeat a request for a while, or until there is nothing left.
func (p *place) load(ctx context.Context, what string, n int, length time.Duration, once func(context.Context, int) error) (line, error) {
	raw := rawSignature()
	time.Sleep(settle)
	before, err := p.used()
	if err != nil {
		return line{}, err
	}
	l := line{what: what, callers: n}
	if what == p.profiled {
		_ = p.broker.Process.Signal(syscall.SIGUSR1)
		defer func() { _ = p.broker.Process.Signal(syscall.SIGUSR2) }()
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var failed error
	start := time.Now()
	for i := range n {
		all.Go(func() {
			times, err := repeat(ctx, start.Add(length), func() error { return once(ctx, i) })
			mu.Lock()
			defer mu.Unlock()
			l.times = append(l.times, times...)
			if err != nil {
				failed = err
			}
		})
	}
	all.Wait()
	l.took, l.requests = time.Since(start), len(l.times)
	if failed != nil {
		return l, failed
	}
	time.Sleep(settle) // what it still does for these requests counts
	after, err := p.used()
	if err != nil {
		return l, err
	}
	each := time.Duration(max(1, l.requests))
	l.broker, l.redis = (after.broker-before.broker)/each, (after.redis-before.redis)/each
	l.allocations = (after.allocations - before.allocations) / float64(each)
	l.asked = (after.requests - before.requests) / float64(each)
	l.signature = (raw + rawSignature()) / 2
	return l, nil
}

func repeat(ctx context.Context, until time.Time, once func() error) (times durations, err error) {
	for time.Now().Before(until) && ctx.Err() == nil {
		start := time.Now()
		switch err := once(); {
		case err == errDone:
			return times, nil
		case err != nil:
			return times, err
		}
		times = append(times, time.Since(start))
	}
	return times, ctx.Err()
}

// ops asks the broker's own listener.
func (p *place) ops(path string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Get(p.at.Ops + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	return b.String(), err
}
