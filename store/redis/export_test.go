package redis

import "time"

// Patient is the Config of a store for tests of what calls do, and not of how long they may take. On a
// busy machine a test's own server may get no processor for as long as Redis may usually be silent.
func (c Config) Patient() Config {
	c.limits = limits{dial: 20 * time.Second, pool: 20 * time.Second, call: 20 * time.Second, send: 30 * time.Second}
	return c
}
