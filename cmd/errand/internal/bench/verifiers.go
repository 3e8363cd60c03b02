package main

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
)

// refused is how long verifiers took to hear of an end.
type refused struct {
	fromRequest durations
	fromAnswer  durations // 0 for those that heard before the caller did
	steady      steady
}

// refusals ends tasks one after the other, and times each verifier.
func (p *place) refusals(ctx context.Context, n int, o options) (all refused, err error) {
	verifiers := make([]*verify.Verifier, n)
	for i := range verifiers {
		source := p.servers[i/perServer].Source()
		toBroker, err := verifyspiffe.TLS(source, name("broker").String())
		if err != nil {
			return all, err
		}
		starting, cancel := context.WithTimeout(ctx, startTimeout)
		verifiers[i], err = verify.New(starting, verify.Config{Issuer: p.at.Issuer, Audience: "orders", TLS: toBroker})
		cancel()
		if err != nil {
			return all, err
		}
		defer verifiers[i].Close()
	}
	svid, err := p.report.Source().GetX509SVID()
	if err != nil {
		return all, err
	}
	c := p.caller()
	defer c.close()
	for range o.ends {
		if err := p.refusal(ctx, c, verifiers, svid.Certificates[0], &all); err != nil {
			return all, err
		}
	}
	all.steady, err = p.steadily(ctx, c, n, o.length)
	return all, err
}

// refusal begins a task, has every verifier accept its token, ends it, and notes when each of them
// refused.
func (p *place) refusal(ctx context.Context, c *caller, verifiers []*verify.Verifier, leaf *x509.Certificate, out *refused) error {
	var begun wire.BeginResponse
	if err := c.post(ctx, wire.PathTasks, beginBody, http.StatusCreated, &begun); err != nil {
		return err
	}
	token := begun.Tokens[0].AccessToken
	heard := make([]time.Time, len(verifiers))
	var all sync.WaitGroup
	for i, v := range verifiers {
		grant, err := v.Verify(ctx, token, &verify.Peer{Certificate: leaf}, verify.Scope("orders:read"))
		if err != nil {
			return err
		}
		watched, cancel, err := v.Watch(ctx, grant)
		if err != nil {
			return err
		}
		defer cancel()
		all.Go(func() {
			<-watched.Done()
			heard[i] = time.Now()
		})
	}
	asked := time.Now()
	if err := c.end(ctx, begunTask{begun.Task.ID, begun.EndKey}); err != nil {
		return err
	}
	answered := time.Now()
	all.Wait()
	for i, v := range verifiers {
		if _, err := v.Verify(ctx, token, &verify.Peer{Certificate: leaf}); !errors.Is(err, verify.ErrRevoked) {
			return errors.Join(errors.New("a verifier did not refuse"), err)
		}
		out.fromRequest = append(out.fromRequest, heard[i].Sub(asked))
		out.fromAnswer = append(out.fromAnswer, max(0, heard[i].Sub(answered)))
	}
	return nil
}
