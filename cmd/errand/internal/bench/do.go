package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/errandhq/errand/sdk"
)

// do measures what a workload does: whole tasks with one token each, through one client.
func (p *place) do(ctx context.Context, n int, length time.Duration) (_ line, err error) {
	client, err := sdk.New(ctx, sdk.WithBroker(p.at.Broker), sdk.WithBrokerID(name(brokerCommand)),
		sdk.WithIdentity(sdk.FromSource(p.report.Source(), p.report.Source())), sdk.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return line{}, err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()
	once := func(ctx context.Context, _ int) error {
		return client.Do(ctx, sdk.TaskSpec{
			Name: "monthly-export", Purpose: "FIN-212 month end", Audiences: []string{"orders"}, Scopes: []string{"orders:read"},
		}, func(ctx context.Context, task *sdk.Task) error {
			_, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
			return err
		})
	}
	if err := p.warm(ctx, n, once); err != nil {
		return line{}, err
	}
	return p.load(ctx, whatDo, n, length, once)
}
