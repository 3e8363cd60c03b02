package keys_test

import (
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/keys"
)

func TestNewDefaults(t *testing.T) {
	ring := newRing(t, keys.Config{})
	if s := signer(t, ring); s.Algorithm() != keys.ES256 || s.KeyID() != only(t, ring, keys.Active).ID {
		t.Errorf("it signs with %s, key %s; want ES256 and the active key", s.Algorithm(), s.KeyID())
	}
	only(t, ring, keys.Next)
	if set := ring.Set(); set.MaxAge != keys.DefaultMaxAge {
		t.Errorf("max-age is %v; want %v", set.MaxAge, keys.DefaultMaxAge)
	}
}

func TestNewValidates(t *testing.T) {
	good := keys.Config{
		Type: typ, Life: life, MaxAge: time.Minute, Skew: 5 * time.Second, Publish: 65 * time.Second, Period: 65 * time.Second,
	}
	for _, c := range []struct {
		name    string
		edit    func(*keys.Config)
		problem string // in the error; empty for what is allowed
	}{
		{"all at the limit", func(*keys.Config) {}, ""},
		{"no type", func(c *keys.Config) { c.Type = "" }, "Type"},
		{"no life", func(c *keys.Config) { c.Life = 0 }, "Life"},
		{"negative life", func(c *keys.Config) { c.Life = -1 }, "Life"},
		{"least life", func(c *keys.Config) { c.Life = 1 }, ""},
		{"negative skew", func(c *keys.Config) { c.Skew = -1 }, "Skew"},
		{"least max-age", func(c *keys.Config) { c.MaxAge = time.Second }, ""},
		{"max-age below a second", func(c *keys.Config) { c.MaxAge = time.Second - 1 }, "MaxAge"},
		{"published for too short", func(c *keys.Config) { c.Publish-- }, "Publish"},
		{"active for too short", func(c *keys.Config) { c.Period-- }, "Period"},
		{"other algorithm", func(c *keys.Config) { c.Algorithm = "none" }, `"none"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := good
			c.edit(&config)
			_, err := keys.New(config)
			switch {
			case c.problem == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)):
				t.Errorf("error %v; want one that names %s", err, c.problem)
			}
		})
	}
}

func TestParseAlgorithm(t *testing.T) {
	for name, header := range map[string]string{"ES256": "ES256", "Ed25519": "EdDSA", "RS256": "RS256"} {
		if a, err := keys.ParseAlgorithm(name); err != nil || string(a) != name || a.Header() != header {
			t.Errorf("%s: %q with header %q, %v; want header %q", name, a, a.Header(), err, header)
		}
	}
	for _, name := range []string{"", "none", "HS256", "es256", "EdDSA", "ES384", " ES256"} {
		if a, err := keys.ParseAlgorithm(name); err == nil || !strings.Contains(err.Error(), "ES256, Ed25519 or RS256") {
			t.Errorf("%q: %q, %v; want an error that lists what there is", name, a, err)
		}
	}
}
