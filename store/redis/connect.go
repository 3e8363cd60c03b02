package redis

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/errandhq/errand/broker"
)

// How long Redis may take. An issue must be refused within a second when there is no answer.
const (
	dialTimeout = 300 * time.Millisecond // with the TLS handshake
	poolTimeout = 300 * time.Millisecond // for a connection when all are in use
	callTimeout = 500 * time.Millisecond
	sendTimeout = 900 * time.Millisecond // for all of these together
)

// connect reads the URL and makes a client, which connects when it is used. Nothing is retried by
// itself: a script that may have run is the caller's to repeat.
func connect(address string) (client redis.UniversalClient, cluster bool, err error) {
	logging.Disable() // all that it says is in the errors, too
	scheme, rest, _ := strings.Cut(address, "://")
	scheme, kind, _ := strings.Cut(scheme, "+")
	plain := scheme + "://" + rest
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch kind {
	case "cluster":
		var o *redis.ClusterOptions
		if o, err = redis.ParseClusterURL(plain); err == nil {
			o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.MaintNotificationsConfig = -1, 1, true, quiet
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, callTimeout, callTimeout, poolTimeout
			return redis.NewClusterClient(o), true, nil
		}
	case "sentinel":
		var o *redis.FailoverOptions
		if o, err = redis.ParseFailoverURL(plain); err == nil {
			o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled = -1, 1, true
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, callTimeout, callTimeout, poolTimeout
			return redis.NewFailoverClient(o), false, nil
		}
	case "":
		var o *redis.Options
		if o, err = redis.ParseURL(plain); err == nil {
			o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.MaintNotificationsConfig = -1, 1, true, quiet
			o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = dialTimeout, callTimeout, callTimeout, poolTimeout
			return redis.NewClient(o), false, nil
		}
	default:
		err = fmt.Errorf("there is no kind %q", kind)
	}
	var bad *url.Error
	if errors.As(err, &bad) { // it has the whole URL, and so the password
		err = bad.Err
	}
	return nil, false, fmt.Errorf("redis: Config.URL cannot be used: %w; write it like redis://user:password@host:6379/0", err)
}

// minVersion is the first Redis whose scripts can have flags.
const minVersion = 7

// check looks at every primary.
func (s *Store) check(ctx context.Context) error {
	check := func(ctx context.Context, node redis.Cmdable) error {
		if err := node.Ping(ctx).Err(); err != nil {
			return fmt.Errorf("%w: redis does not answer; is it running, and are address and password right? %w", broker.ErrUnavailable, err)
		}
		text, err := node.Info(ctx).Result()
		if err != nil {
			return fmt.Errorf("%w: redis does not say what it is: %w", broker.ErrUnavailable, err)
		}
		return checkInfo(text)
	}
	if c, ok := s.client.(*redis.ClusterClient); ok {
		return c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return check(ctx, node) })
	}
	return check(ctx, s.client)
}

func checkInfo(text string) error {
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		facts[name] = value
	}
	major, _, _ := strings.Cut(facts["redis_version"], ".")
	if n, err := strconv.Atoi(major); err != nil || n < minVersion {
		return fmt.Errorf("redis: the server has version %q; it must be %d.0 or later", facts["redis_version"], minVersion)
	}
	if policy := facts["maxmemory_policy"]; policy != "noeviction" {
		return fmt.Errorf("redis: maxmemory-policy is %q, which may throw revocations away; set it to noeviction", policy)
	}
	return nil
}
