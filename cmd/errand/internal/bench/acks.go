package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	whatAck    = "an acknowledgement"
	steadyRate = 100 // ends a second
)

// steady is what the broker does while tasks end at a steady rate and verifiers listen.
type steady struct {
	ends, acks, processor float64 // a second
	verifiers             int
}

func (s steady) String() string {
	each := time.Duration(s.processor / s.ends / float64(s.verifiers) * float64(time.Second))
	return fmt.Sprintf("%.0f ends and %.0f acknowledgements a second take %.0f %% of a processor: %.0f µs for each delivery", s.ends, s.acks, 100*s.processor, micro(each))
}

// steadily begins and ends tasks at steadyRate, as far as one caller can.
func (p *place) steadily(ctx context.Context, c *caller, verifiers int, length time.Duration) (s steady, err error) {
	before, err := p.used()
	if err != nil {
		return s, err
	}
	acked, err := p.acked()
	if err != nil {
		return s, err
	}
	tick := time.NewTicker(time.Second / steadyRate)
	defer tick.Stop()
	start := time.Now()
	for time.Since(start) < length {
		<-tick.C
		task, err := c.begin(ctx)
		if err == nil {
			err = c.end(ctx, task)
		}
		if err != nil {
			return s, err
		}
		s.ends++
	}
	took := time.Since(start).Seconds()
	after, err := p.used()
	if err != nil {
		return s, err
	}
	more, err := p.acked()
	return steady{s.ends / took, (more - acked) / took, (after.broker - before.broker).Seconds() / took, verifiers}, err
}

// acked is how many acknowledgements the broker has taken.
func (p *place) acked() (n float64, err error) {
	text, err := p.ops("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		_, value, ok := strings.Cut(line, "} ")
		if ok && strings.HasPrefix(line, "errand_http_request_duration_seconds_count{") && strings.Contains(line, `route="`+wire.PathFeedAcks+`"`) {
			one, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return 0, err
			}
			n += one
		}
	}
	return n, nil
}

// ack measures acknowledgements alone, sent by several verifiers of one server, below the rate that it is held to.
func (p *place) ack(ctx context.Context, length time.Duration) (line, error) {
	toBroker, err := verifyspiffe.TLS(p.servers[0].Source(), name("broker").String())
	if err != nil {
		return line{}, err
	}
	const callers = 4
	all := make([]*caller, callers)
	for i := range all {
		all[i] = &caller{p.at.Broker, &http.Client{Transport: &http.Transport{TLSClientConfig: toBroker.Clone(), MaxIdleConnsPerHost: 1}, Timeout: 10 * time.Second}}
		defer all[i].close()
	}
	var at wire.FeedSnapshot
	if err := all[0].read(ctx, wire.PathFeedSnapshot+"?aud=orders", &at); err != nil {
		return line{}, err
	}
	return p.load(ctx, whatAck, callers, length, func(ctx context.Context, i int) error {
		time.Sleep(callers * 2 * time.Millisecond)
		return all[i].post(ctx, wire.PathFeedAcks+"?aud=orders", fmt.Sprintf(`{"id":"bench%d","position":%q,"max_stale":10}`, i, at.Position), http.StatusNoContent, nil)
	})
}
