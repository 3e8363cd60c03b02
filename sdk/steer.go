package sdk

import (
	"time"

	"github.com/errandhq/errand/sdk/internal/steer"
)

// For brokertest, whose time is not real.
func init() {
	steer.Clock = func(now func() time.Time) any {
		return Option(func(c *config) {
			c.clock = func() instant {
				at := now()
				return instant{steady: at, wall: at.Round(0)}
			}
		})
	}
	steer.Beat = func(client any) error { return client.(*Client).beatNow() }
	steer.Stride = func(client any) time.Duration {
		_, third := client.(*Client).beating()
		return third
	}
	steer.Unconfirmed = func(client any) (ids []string) {
		for t := range client.(*Client).unsettled() {
			ids = append(ids, t.id)
		}
		return ids
	}
}

// beatNow is for a clock that was moved: it does what is due then.
func (c *Client) beatNow() error {
	err := c.beatAll()
	tasks, _ := c.beating()
	for _, t := range tasks {
		t.check()
	}
	nudge(c.wake)
	return err
}
