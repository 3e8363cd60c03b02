package main

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
)

// watched are tokens that one connected verifier accepts, until it does not any more.
type watched struct {
	v      *verify.Verifier
	peer   *verify.Peer
	tokens []string
	heard  []time.Time
	all    sync.WaitGroup
	cancel []context.CancelFunc
}

// watch has so many tokens issued, each in the task that of names, and a verifier accept them.
func (p *place) watch(ctx context.Context, samples int, of func(i, n int) broker.TaskID) (w *watched, err error) {
	toBroker, err := verifyspiffe.TLS(p.servers[0].Source(), name("broker").String())
	if err != nil {
		return nil, err
	}
	svid, err := p.report.Source().GetX509SVID()
	if err != nil {
		return nil, err
	}
	w = &watched{peer: &verify.Peer{Certificate: svid.Certificates[0]}, tokens: make([]string, samples), heard: make([]time.Time, samples)}
	if w.v, err = verify.New(ctx, verify.Config{Issuer: p.at.Issuer, Audience: "orders", TLS: toBroker}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	c := p.caller()
	defer c.close()
	for i := range samples {
		var issued wire.TokenResponse
		if err := c.post(ctx, taskPath(string(of(i, samples)), "/tokens"), tokenBody, http.StatusOK, &issued); err != nil {
			return w, err
		}
		w.tokens[i] = issued.AccessToken
		grant, err := w.v.Verify(ctx, w.tokens[i], w.peer, verify.Scope("orders:read"))
		if err != nil {
			return w, err
		}
		alive, cancel, err := w.v.Watch(ctx, grant)
		if err != nil {
			return w, err
		}
		w.cancel = append(w.cancel, cancel)
		w.all.Go(func() {
			<-alive.Done()
			w.heard[i] = time.Now()
		})
	}
	return w, nil
}

// refused waits until the verifier refuses all of them, and returns how long after a moment it began to.
func (w *watched) refused(ctx context.Context, after time.Time) (late durations, err error) {
	w.all.Wait()
	for i, token := range w.tokens {
		if _, err := w.v.Verify(ctx, token, w.peer); !errors.Is(err, verify.ErrRevoked) {
			return late, errors.Join(errors.New("a verifier did not refuse"), err)
		}
		late = append(late, max(0, w.heard[i].Sub(after)))
	}
	return late, nil
}

func (w *watched) close() {
	for _, cancel := range w.cancel {
		cancel()
	}
	w.v.Close()
}
