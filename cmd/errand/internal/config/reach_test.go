package config

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// assembled is what a file has come to.
type assembled struct {
	config *Config
	server server.Config
	redis  redis.Config
	log    string // what the logger has made of a line of each of debug and info
}

// reach is where a key must arrive.
type reach struct {
	value string            // in the file; not the default
	with  map[string]string // other keys that the value needs
	at    func(assembled) any
	want  any
}

// reaches has every key of the manual.
func reaches(t *testing.T, dir string) map[string]reach {
	fromFiles := map[string]string{
		"identity.workload_api": "", "identity.certificate": "/c.pem", "identity.key": "/k.pem", "identity.bundle": "/b.pem",
	}
	source := func(a assembled) any { return a.server.Identity.String() }
	role := func(a assembled) any { return a.server.Operators["spiffe://a/b"] }
	inRedis := map[string]string{
		"store.type": "redis", "store.redis.url": redistest.Start(t).URL(), "keys.key_file": filepath.Join(dir, "seal"),
	}
	return map[string]reach{
		"issuer":     {value: "https://b:1", at: func(a assembled) any { return a.server.Issuer }, want: "https://b:1"},
		"broker_url": {value: "https://b:2", at: func(a assembled) any { return a.server.BrokerURL }, want: "https://b:2"},

		"listeners.workload": {value: "h:1", at: func(a assembled) any { return a.server.WorkloadAddr }, want: "h:1"},
		"listeners.public":   {value: "h:1", at: func(a assembled) any { return a.server.PublicAddr }, want: "h:1"},
		"listeners.operator": {value: "h:1", at: func(a assembled) any { return a.server.OperatorAddr }, want: "h:1"},
		"listeners.ops":      {value: "localhost:1", at: func(a assembled) any { return a.server.OpsAddr }, want: "localhost:1"},

		"identity.workload_api":  {value: "unix:///t", at: source, want: `the Workload API at "unix:///t"`},
		"identity.certificate":   {value: "/other.pem", with: fromFiles, at: source, want: "the files /other.pem, /k.pem and /b.pem"},
		"identity.key":           {value: "/other.pem", with: fromFiles, at: source, want: "the files /c.pem, /other.pem and /b.pem"},
		"identity.bundle":        {value: "/other.pem", with: fromFiles, at: source, want: "the files /c.pem, /k.pem and /other.pem"},
		"identity.max_svid_life": {value: "61m", at: func(a assembled) any { return a.server.Identity.MaxSVIDLife }, want: 61 * time.Minute},
		"identity.max_age":       {value: "61m", at: func(a assembled) any { return a.server.Identity.MaxAge }, want: 61 * time.Minute},
		"identity.wait":          {value: "7s", at: func(a assembled) any { return a.config.Identity.Wait }, want: 7 * time.Second}, // serve has it from there
		"identity.withdrawal":    {value: "7s", at: func(a assembled) any { return a.server.Withdrawal }, want: 7 * time.Second},
		// TestFederation shows that it works.
		"identity.federation": {
			value: "[{trust_domain: a, file: /f}, {trust_domain: b, url: https://u, profile: https_web, ca_file: /ca}, " +
				"{trust_domain: c, url: https://v, profile: https_spiffe, endpoint_id: spiffe://c/d, bootstrap: /b, max_age: 7m}]",
			at: func(a assembled) any { return a.config.federation() },
			want: []identity.Federation{
				{TrustDomain: "a", File: "/f"}, {TrustDomain: "b", URL: "https://u", Profile: identity.HTTPSWeb, CAFile: "/ca"},
				{TrustDomain: "c", URL: "https://v", Profile: identity.HTTPSSPIFFE, EndpointID: "spiffe://c/d", Bootstrap: "/b", MaxAge: 7 * time.Minute},
			},
		},

		"inventory": {value: filepath.Join(dir, "other.yaml"), at: func(a assembled) any {
			_, err := a.server.Registry.(*registry.Registry).Workload(spiffeid.RequireFromString("spiffe://a/worker"))
			return err
		}, want: error(nil)},
		"audit.log": {value: "/audit", at: func(a assembled) any { return a.server.AuditLog }, want: "/audit"},

		"store.type":                         {value: "redis", with: inRedis, at: func(a assembled) any { return fmt.Sprintf("%T", a.server.Store) }, want: "*redis.Store"},
		"store.redis.url":                    {value: "redis://h", at: func(a assembled) any { return a.redis.URL }, want: "redis://h"},
		"store.redis.password_file":          {value: "/f", at: func(a assembled) any { return a.redis.PasswordFile }, want: "/f"},
		"store.redis.sentinel_password_file": {value: "/f", at: func(a assembled) any { return a.redis.SentinelPasswordFile }, want: "/f"},
		"store.redis.ca_file":                {value: "/f", at: func(a assembled) any { return a.redis.CAFile }, want: "/f"},
		"store.redis.certificate_file":       {value: "/f", at: func(a assembled) any { return a.redis.CertFile }, want: "/f"},
		"store.redis.key_file":               {value: "/f", at: func(a assembled) any { return a.redis.KeyFile }, want: "/f"},
		"store.redis.deployment":             {value: "other", at: func(a assembled) any { return a.redis.Deployment }, want: "other"},
		"store.redis.prefix":                 {value: `"other:"`, at: func(a assembled) any { return a.redis.Prefix }, want: "other:"},
		"store.redis.shards":                 {value: "7", at: func(a assembled) any { return a.redis.Shards }, want: 7},

		"keys.key_file": {value: filepath.Join(dir, "seal"), with: inRedis, at: func(a assembled) any {
			if a.server.SharedKeys == nil {
				return nil
			}
			return a.server.SharedKeys.Seal.Derive("a test")
		}, want: seal(t).Derive("a test")},
		"keys.algorithm": {value: "RS256", at: func(a assembled) any { return a.server.Algorithm }, want: keys.RS256},
		"keys.period":    {value: "61m", at: func(a assembled) any { return a.server.KeyPeriod }, want: 61 * time.Minute},

		"operators.viewer":   {value: "[spiffe://a/b]", at: role, want: broker.RoleViewer},
		"operators.operator": {value: "[spiffe://a/b]", at: role, want: broker.RoleOperator},
		"operators.admin":    {value: "[spiffe://a/b]", at: role, want: broker.RoleAdmin},
		"operators.certificates": {
			value: "[{certificate: " + hexPrint + ", name: ada, role: operator}]",
			at: func(a assembled) any {
				return fmt.Sprint(a.server.OperatorCertificates, a.server.Operators["certificate:ada"] == broker.RoleOperator)
			},
			want: fmt.Sprint(identity.Certificates{base64Print: "ada"}, true),
		},

		"limits.issue_rate":             {value: "7", at: func(a assembled) any { return a.server.Limits.IssueRate }, want: 7},
		"limits.issue_burst":            {value: "7", at: func(a assembled) any { return a.server.Limits.IssueBurst }, want: 7},
		"limits.rate":                   {value: "7", at: func(a assembled) any { return a.server.Limits.Rate }, want: 7},
		"limits.burst":                  {value: "7", at: func(a assembled) any { return a.server.Limits.Burst }, want: 7},
		"limits.issuing":                {value: "7", at: func(a assembled) any { return a.server.Limits.Issuing }, want: 7},
		"limits.others":                 {value: "7", at: func(a assembled) any { return a.server.Limits.Others }, want: 7},
		"limits.connections":            {value: "7", at: func(a assembled) any { return a.server.Limits.Connections }, want: 7},
		"limits.connections_of_address": {value: "7", at: func(a assembled) any { return a.server.Limits.PerAddress }, want: 7},
		"limits.handshakes":             {value: "7", at: func(a assembled) any { return a.server.Limits.Handshakes }, want: 7},
		"limits.handshake_time":         {value: "7s", at: func(a assembled) any { return a.server.Limits.HandshakeTime }, want: 7 * time.Second},
		"limits.connection_age":         {value: "61m", at: func(a assembled) any { return a.server.Limits.ConnectionAge }, want: 61 * time.Minute},

		"drain": {value: "7s", at: func(a assembled) any { return a.server.Drain }, want: 7 * time.Second},

		"log.level":  {value: "debug", at: func(a assembled) any { return strings.Count(a.log, "\n") }, want: 2},
		"log.format": {value: "json", at: func(a assembled) any { return strings.HasPrefix(a.log, "{") }, want: true},
	}
}

var sealText = strings.Repeat("\x01", keys.SealBytes)

func seal(t *testing.T) *keys.Seal {
	t.Helper()
	s, err := keys.NewSeal([]byte(sealText))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEveryKeyReaches: what a file says of each key of the manual arrives at what it configures.
func TestEveryKeyReaches(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"seal": sealText, "inventory.yaml": "workloads: []\n",
		"other.yaml": "audiences: [{name: orders, owner: o, scopes: [r]}]\nworkloads: [{id: spiffe://a/worker, owner: o, purpose: p, ceiling: {orders: [r]}}]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := reaches(t, dir)
	for _, s := range Default().settings() {
		r, ok := all[s.name]
		if !ok {
			t.Errorf("%s: say here what it configures", s.name)
			continue
		}
		if got := r.at(assemble(t, dir, r.with, s.name, "")); reflect.DeepEqual(got, r.want) {
			t.Errorf("%s: without it, it is %v already", s.name, got)
		}
		if got := r.at(assemble(t, dir, r.with, s.name, r.value)); !reflect.DeepEqual(got, r.want) {
			t.Errorf("%s in the file is %s, and what it configures is %v; want %v", s.name, r.value, got, r.want)
		}
		delete(all, s.name)
	}
	for name := range all {
		t.Errorf("%s is not a key", name)
	}
}

// assemble makes a replica's parts of a file that has one key, with the others from the environment. Without
// a value the key is not there, or has another that is good.
func assemble(t *testing.T, dir string, with map[string]string, key, value string) assembled {
	t.Helper()
	others := map[string]string{
		"issuer": "https://a:1", "broker_url": "https://a:2", "identity.workload_api": "unix:///s", "inventory": filepath.Join(dir, "inventory.yaml"),
		"audit.log": "/l", "store.type": "memory",
	}
	for k, v := range with {
		others[k] = v
	}
	text := ""
	if value != "" {
		delete(others, key)
		text = nested(strings.Split(key, "."), value)
	} else if key == "store.type" || key == "keys.key_file" {
		others["store.type"] = "memory"
	}
	var environ []string
	for k, v := range others {
		environ = append(environ, Variable(k)+"="+v)
	}
	c, problems := parse(t, text, environ, nil)
	if problems != nil {
		t.Fatalf("%s: %v", key, problems)
	}
	out := assembled{config: c}
	var said bytes.Buffer
	log := c.Logger(&said)
	log.Debug("a line")
	log.Info("a line")
	out.log = said.String()
	var release func() error
	var err error
	if out.server, release, err = c.Replica(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if out.redis, err = c.redisConfig(nil); err != nil {
		t.Error(err)
	}
	return out
}

// nested is a file with one key.
func nested(sections []string, value string) string {
	if len(sections) == 1 {
		return sections[0] + ": " + value + "\n"
	}
	return sections[0] + ":\n  " + strings.ReplaceAll(nested(sections[1:], value), "\n", "\n  ") + "\n"
}
