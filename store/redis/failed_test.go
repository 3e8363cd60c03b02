package redis

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
)

// said is an error as a server says it.
type said string

func (e said) Error() string { return string(e) }
func (said) RedisError()     {}

var _ redis.Error = said("")

// TestFailed: only what is known to have done nothing is said to have. A cluster's client leaves a
// redirection in a command that it has sent again, when the second answer is lost.
func TestFailed(t *testing.T) {
	for text, want := range map[string]error{
		"NOSCRIPT No matching script": broker.ErrUnavailable,
		"OOM command not allowed":     broker.ErrUnavailable,
		"READONLY You can't write":    broker.ErrUnavailable,
		"TRYAGAIN Multiple keys":      broker.ErrUnavailable,
		"MOVED 1 127.0.0.1:1":         broker.ErrUnconfirmed,
		"ASK 1 127.0.0.1:1":           broker.ErrUnconfirmed,
		"ERR Error running script":    broker.ErrUnconfirmed,
		"WRONGTYPE Operation against": broker.ErrUnconfirmed,

		"NOPERM The user executing the script can't run this command script: 5eed, on @user_script:9.": broker.ErrUnconfirmed,
		"OOM command not allowed script: 5eed, on @user_script:9.":                                     broker.ErrUnconfirmed,
	} {
		err := (&script{name: "end", sum: "5eed", writes: true}).failed(said(text))
		if !errors.Is(err, want) || !errors.Is(err, said(text)) {
			t.Errorf("%s: %v; want %v", text, err, want)
		}
		if err := (&script{name: "lookup"}).failed(said(text)); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s to a look-up: %v; want ErrUnavailable", text, err)
		}
	}
}
