package config

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/store/redis"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// bounds are the least and the most of each duration.
var bounds = map[string][2]time.Duration{
	"identity.max_svid_life": {time.Minute, 31 * 24 * time.Hour},
	"identity.max_age":       {identity.MinMaxAge, identity.MaxMaxAge},
	"identity.wait":          {time.Second, time.Hour},
	"identity.withdrawal":    {time.Second, server.MaxWithdrawal},
	"limits.handshake_time":  {httpapi.MinHandshakeTime, httpapi.MaxHandshakeTime},
	"drain":                  {0, server.MaxDrain},
	"limits.connection_age":  {time.Minute, httpapi.MaxConnectionAge},
	"keys.period":            {keys.DefaultPublish, 90 * 24 * time.Hour},
}

// counts are the least and the most of each number.
var counts = map[string][2]int{
	"store.redis.shards": {0, broker.MaxShards},
	"limits.issue_rate":  {1, httpapi.MaxRate}, "limits.issue_burst": {1, httpapi.MaxRate},
	"limits.rate": {1, httpapi.MaxRate}, "limits.burst": {1, httpapi.MaxRate},
	"limits.issuing": {1, httpapi.MaxAtOnce}, "limits.others": {1, httpapi.MaxAtOnce},
	"limits.connections": {2, httpapi.MaxConnections}, "limits.connections_of_address": {1, httpapi.MaxConnections},
	"limits.handshakes": {1, httpapi.MaxConnections},
}

// required keys have no default.
var required = []string{"issuer", "broker_url", "inventory", "audit.log", "store.type"}

// choices of a key.
var choices = map[string][]string{
	"store.type":     {"redis", "memory"},
	"keys.algorithm": {string(keys.ES256), string(keys.Ed25519), string(keys.RS256)},
	"log.level":      {"debug", "info", "warn", "error"},
	"log.format":     {"text", "json"},
}

// workloadSocket is the SPIFFE standard's variable, which counts when no source is named.
const workloadSocket = "SPIFFE_ENDPOINT_SOCKET"

// complete fills in what depends on something else.
func (c *Config) complete(environ []string) {
	if c.Identity.WorkloadAPI != "" || c.Identity.Certificate != "" {
		return
	}
	for _, pair := range environ {
		if value, ok := strings.CutPrefix(pair, workloadSocket+"="); ok && value != "" {
			c.Identity.WorkloadAPI = value
			c.origins["identity.workload_api"] = Origin{Variable: workloadSocket}
		}
	}
}

// check finds what can be known without a look at the disk.
func (c *Config) check() Problems {
	var out Problems
	say := func(key, format string, args ...any) { out = append(out, c.problem(key, format, args...)) }
	for _, s := range c.settings() {
		text, _ := s.value.Interface().(string)
		d, isDuration := s.value.Interface().(time.Duration)
		switch allowed := choices[s.name]; {
		case slices.Contains(required, s.name) && text == "":
			say(s.name, "is missing; it has no default. See  errand config init")
		case allowed != nil && !slices.Contains(allowed, text):
			say(s.name, "is %q; it must be %s", text, oneOf(allowed))
		case isDuration:
			if b := bounds[s.name]; d < b[0] || d > b[1] {
				say(s.name, "is %s; it must be %s to %s", duration(d), duration(b[0]), duration(b[1]))
			}
		}
		if n, ok := s.value.Interface().(int); ok {
			if b := counts[s.name]; n < b[0] || n > b[1] {
				say(s.name, "is %d; it must be %d to %d", n, b[0], b[1])
			}
		}
	}
	c.checkAddresses(say)
	c.checkIdentity(say)
	c.operators(say)
	c.checkFederation(say)
	if c.Store.Type == "redis" {
		c.checkRedis(say)
	}
	slices.SortFunc(out, byPlace) // maps have no order
	return out
}

// say reports a mistake in the value of a key.
type say func(key, format string, args ...any)

func (c *Config) checkAddresses(say say) {
	for key, text := range map[string]string{"issuer": c.Issuer, "broker_url": c.BrokerURL} {
		if text == "" {
			continue
		}
		if err := server.CheckURL(text); err != nil {
			say(key, "is %v", err)
		} else if _, err := portOf(strings.TrimPrefix(text, "https://")); err != nil {
			say(key, "is %q; %v", text, err)
		}
	}
	c.checkListeners(say)
	if !server.IsLoopback(c.Listeners.Ops) {
		say("listeners.ops", "is %q; it must be a loopback address, as %s: it asks nobody who they are", c.Listeners.Ops, server.DefaultOpsAddr)
	}
}

// checkListeners wants addresses that there are, and that can be listened on side by side.
func (c *Config) checkListeners(say say) {
	all := []struct{ key, addr string }{
		{"listeners.workload", c.Listeners.Workload}, {"listeners.public", c.Listeners.Public}, {"listeners.ops", c.Listeners.Ops}, {"listeners.operator", c.Listeners.Operator},
	}
	o := c.Operators
	off := len(o.Viewer)+len(o.Operator)+len(o.Admin)+len(o.Certificates) == 0
	for i, l := range all {
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			say(l.key, "is %q; it must be host:port, as 10.0.0.5:8443, or :8443 for all addresses", l.addr)
			continue
		}
		if _, err := portOf(l.addr); err != nil {
			say(l.key, "is %q; %v", l.addr, err)
			continue
		}
		if l.key == "listeners.operator" && off {
			continue
		}
		for _, other := range all[:i] {
			if inTheWay(l.addr, other.addr) {
				say(l.key, "is %q, which %s has already (%q); give each listener a port of its own", l.addr, other.key, other.addr)
				break
			}
		}
	}
}

// portOf is the number of an address's port, which may be a name; 0 when there is none.
func portOf(addr string) (int, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, nil
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return 0, fmt.Errorf("there is no port %s, they go from 1 to 65535", port)
	}
	return number, nil
}

// inTheWay reports whether two addresses cannot be listened on at once. Port 0 is any that is free.
func inTheWay(a, b string) bool {
	one, errOne := portOf(a)
	two, errTwo := portOf(b)
	if errOne != nil || errTwo != nil || one != two || one == 0 {
		return false
	}
	host, _, _ := net.SplitHostPort(a)  // portOf has
	other, _, _ := net.SplitHostPort(b) // taken them apart
	all := func(host string) bool { return host == "" || net.ParseIP(host).IsUnspecified() }
	return host == other || all(host) || all(other)
}

func (c *Config) checkIdentity(say say) {
	i := c.Identity
	files := map[string]string{"identity.certificate": i.Certificate, "identity.key": i.Key, "identity.bundle": i.Bundle}
	named := 0
	for _, path := range files {
		if path != "" {
			named++
		}
	}
	switch {
	case named == 0 && i.WorkloadAPI == "":
		say("identity.workload_api", "is missing, and no files are named: set it, or identity.certificate, identity.key and identity.bundle, or the environment variable %s", workloadSocket)
	case named > 0 && i.WorkloadAPI != "":
		say("identity.workload_api", "is set, and so are files: name one source of the identity")
	case named > 0:
		for key, path := range files {
			if path == "" {
				say(key, "is missing; an identity from files needs identity.certificate, identity.key and identity.bundle")
			}
		}
	case !strings.HasPrefix(i.WorkloadAPI, "unix://") && !strings.HasPrefix(i.WorkloadAPI, "tcp://"):
		say("identity.workload_api", "is %q; it must be as unix:///run/spire/agent/api.sock, or tcp://127.0.0.1:8081", i.WorkloadAPI)
	}
}

// operators are the roles, and the names of certificates.
func (c *Config) operators(say say) (httpapi.Operators, identity.Certificates) {
	out := httpapi.Operators{}
	for _, of := range []struct {
		key  string
		role broker.Role
		ids  []string
	}{
		{"operators.viewer", broker.RoleViewer, c.Operators.Viewer}, {"operators.operator", broker.RoleOperator, c.Operators.Operator},
		{"operators.admin", broker.RoleAdmin, c.Operators.Admin},
	} {
		for _, text := range of.ids {
			id, err := spiffeid.FromString(text)
			switch {
			case err != nil:
				say(of.key, "has %q, which is not a SPIFFE ID: %v", text, err)
			case id.Path() == "":
				say(of.key, "has %q, which is a trust domain; name one operator", text)
			case out[id.String()] != broker.NoRole:
				say(of.key, "has %q, which is there already; name each operator once, in the role that may most", text)
			}
			out[id.String()] = of.role
		}
	}
	return out, c.certificates(say, out)
}

// certificates are the names by thumbprint. The roles go to those by SPIFFE ID.
func (c *Config) certificates(say say, roles httpapi.Operators) identity.Certificates {
	out := identity.Certificates{}
	for i, listed := range c.Operators.Certificates {
		say := func(format string, args ...any) {
			say("operators.certificates", "[%d].%s", i, fmt.Sprintf(format, args...))
		}
		thumbprint, err := identity.ParseThumbprint(listed.Certificate)
		switch {
		case listed.Certificate == "":
			say("certificate is missing; it is what  openssl x509 -in FILE -noout -fingerprint -sha256  prints")
		case err != nil:
			say("certificate is %q, which %v", listed.Certificate, err)
		case out[thumbprint] != "":
			say("certificate is that of %s already; list each certificate once", out[thumbprint])
		}
		name := broker.CertificateOperator + listed.Name
		if listed.Name == "" {
			say("name is missing; it stands in the audit log for whoever has the certificate")
		} else if err := identity.CheckName(listed.Name); err != nil {
			say("name is %q; it %v", listed.Name, err)
		}
		role, ok := roleNames[listed.Role]
		switch has := roles[name]; {
		case !ok:
			say("role is %q; it must be %s", listed.Role, oneOf([]string{"viewer", "operator", "admin"}))
		case has != broker.NoRole && has != role:
			say("role is %s, and %s has another certificate with the role %s; one name has one role", role, listed.Name, has)
		}
		out[thumbprint], roles[name] = listed.Name, role
	}
	return out
}

var roleNames = map[string]broker.Role{"viewer": broker.RoleViewer, "operator": broker.RoleOperator, "admin": broker.RoleAdmin}

// federation is what the source of the identity is told.
func (c *Config) federation() []identity.Federation {
	var out []identity.Federation
	for _, f := range c.Identity.Federation {
		out = append(out, identity.Federation{
			TrustDomain: f.TrustDomain, File: f.File, URL: f.URL, Profile: identity.Profile(f.Profile),
			CAFile: f.CAFile, EndpointID: f.EndpointID, Bootstrap: f.Bootstrap, MaxAge: f.MaxAge,
		})
	}
	return out
}

func (c *Config) checkFederation(say say) {
	err := identity.FromWorkloadAPI("", nil).Federate(c.federation()...)
	var bad *identity.FederationError
	switch {
	case errors.As(err, &bad):
		field, _ := reflect.TypeFor[Federation]().FieldByName(bad.Field)
		detail := strings.Replace(bad.Detail, "so is URL;", "so is url;", 1) // the other field that one names
		say("identity.federation", "[%d].%s %s", bad.Index, field.Tag.Get("yaml"), detail)
	case err != nil:
		say("identity.federation", "cannot be used: %v", err)
	}
}

func (c *Config) checkRedis(say say) {
	r := c.Store.Redis
	u, _, ok := plainURL(r.URL)
	switch {
	case r.URL == "":
		say("store.redis.url", "is missing; the store is in Redis, and must be found")
	case !ok: // what is wrong with it may be a part of a password
		say("store.redis.url", "is not a URL; write it as rediss://errand@redis.example.org:6379/0, and a password into store.redis.password_file")
	case r.PasswordFile != "" && u.User != nil && hasPassword(u):
		say("store.redis.url", "has a password, and so has store.redis.password_file; leave it in the file alone")
	default:
		if err := redis.CheckURL(r.URL); err != nil {
			say("store.redis.url", "is %s, and that cannot be used: %s", maskedURL(r.URL), redisKeys.Replace(err.Error()))
		}
	}
	if (r.CertificateFile == "") != (r.KeyFile == "") {
		say("store.redis.certificate_file", "and store.redis.key_file belong together; name both, or neither")
	}
	if c.Keys.KeyFile == "" {
		say("keys.key_file", "is missing; signing keys that replicas share in Redis are sealed under it. Copy that of the other replicas, or make the first one with  (umask 077; openssl rand -out FILE %d)", keys.SealBytes)
	}
}

func hasPassword(u *url.URL) bool {
	_, ok := u.User.Password()
	return ok
}

// secretFile is the path of a secret: "credential:NAME" is one of systemd's (systemd.exec(5),
// LoadCredential=).
func secretFile(path string) (string, error) {
	name, ok := strings.CutPrefix(path, keys.CredentialPrefix)
	if !ok {
		return path, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" || name == "" || name != filepath.Base(name) || name == ".." {
		return "", fmt.Errorf("is %q; a systemd credential needs LoadCredential=NAME:FILE in the unit, and is written %sNAME", path, keys.CredentialPrefix)
	}
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("is %q, and there is no such credential; the systemd unit must have LoadCredential=%s:FILE, with the path of the file", path, name)
	}
	return file, nil
}

// CheckFiles looks at what the configuration names on the disk. It returns Problems, or nil.
func (c *Config) CheckFiles() error {
	var out Problems
	say := func(key, format string, args ...any) { out = append(out, c.problem(key, format, args...)) }
	for key, path := range map[string]string{
		"identity.certificate": c.Identity.Certificate, "identity.key": c.Identity.Key, "identity.bundle": c.Identity.Bundle,
	} {
		if path != "" {
			c.checkReadable(say, key, path)
		}
	}
	if i := c.Identity; len(out) == 0 && i.Certificate != "" && i.Key != "" && i.Bundle != "" {
		if err := c.identityFiles().Check(time.Now()); err != nil {
			say("identity.certificate", unfit, err)
		}
	}
	for _, f := range c.Identity.Federation {
		for _, path := range []string{f.File, f.CAFile, f.Bootstrap} {
			if path != "" {
				c.checkReadable(say, "identity.federation", path)
			}
		}
	}
	if c.Store.Type == "redis" {
		c.checkSecrets(say)
	}
	if c.Inventory != "" {
		if _, err := registry.Load(c.Inventory); err != nil {
			out = append(out, c.inventoryProblems(err)...)
		}
	}
	if c.Audit.Log != "" {
		dir := filepath.Dir(c.Audit.Log)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			say("audit.log", "is %s, and there is no folder %s: make it, writable for the user that errand runs as", c.Audit.Log, dir)
		}
	}
	if len(out) == 0 {
		return nil
	}
	slices.SortFunc(out, byPlace)
	return out
}

// inventoryProblems has one for each registration that is wrong.
func (c *Config) inventoryProblems(err error) (out Problems) {
	var each interface{ Unwrap() []error }
	if !errors.As(err, &each) {
		return Problems{c.problem("inventory", "cannot be used: %v", err)}
	}
	for _, err := range each.Unwrap() {
		out = append(out, c.problem("inventory", "cannot be used: %s: %v", c.Inventory, err))
	}
	return out
}

// checkSecrets looks at what the store in Redis needs.
func (c *Config) checkSecrets(say say) {
	r := c.Store.Redis
	files := map[string]string{} // that can be read
	for key, path := range map[string]string{
		"store.redis.password_file": r.PasswordFile, "store.redis.sentinel_password_file": r.SentinelPasswordFile,
		"store.redis.ca_file": r.CAFile, "store.redis.certificate_file": r.CertificateFile, "store.redis.key_file": r.KeyFile,
	} {
		if path == "" {
			continue
		}
		if path, err := secretFile(path); err != nil {
			say(key, "%v", err)
		} else if c.checkReadable(say, key, path) {
			files[key] = path
		}
	}
	if certificate, key := files["store.redis.certificate_file"], files["store.redis.key_file"]; certificate != "" && key != "" {
		if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
			say("store.redis.certificate_file", "and store.redis.key_file cannot be used together: %v", err)
		}
	}
	if c.Keys.KeyFile != "" {
		if _, err := keys.LoadSeal(c.Keys.KeyFile); err != nil {
			say("keys.key_file", "cannot be used: %v", err)
		}
	}
}

// checkReadable reports whether there is a file that this process may read.
func (c *Config) checkReadable(say say, key, path string) bool {
	file, err := os.Open(path)
	if err != nil {
		say(key, "cannot be read: %v", err)
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		say(key, "is %s, which is a folder; name the file", path)
		return false
	}
	return true
}

func byPlace(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.Origin.Line, b.Origin.Line), cmp.Compare(a.Origin.Column, b.Origin.Column), cmp.Compare(a.Key, b.Key))
}

// oneOf writes a list of choices as people do.
func oneOf(choices []string) string {
	n := len(choices) - 1
	if n == 0 {
		return choices[0]
	}
	return strings.Join(choices[:n], ", ") + " or " + choices[n]
}
