package redis

import "time"

// Patient is the Config of a store for tests of what calls do, and not of how long they may take. On a
// busy machine a test's own server may get no processor for as long as Redis may usually be silent.
func (c Config) Patient() Config {
	c.limits = limits{dial: 20 * time.Second, pool: 20 * time.Second, call: 20 * time.Second, send: 30 * time.Second, rounds: usual.rounds}
	return c
}

// Rounds is the Config of a store whose lists make so many rounds. It is patient.
func (c Config) Rounds(n int) Config {
	c = c.Patient()
	c.limits.rounds = n
	return c
}

// Waiting is how many calls that issue wait for another one to come back.
func (s *Store) Waiting() (n int) {
	for _, l := range s.issues {
		l.mu.Lock()
		n += len(l.waiting)
		l.mu.Unlock()
	}
	return n
}
