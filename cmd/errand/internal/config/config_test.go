package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/keys"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parse reads a text as errand.yaml.
func parse(t *testing.T, text string, environ, set []string) (*Config, Problems) {
	t.Helper()
	c, err := Parse([]byte(text), Sources{File: "errand.yaml", Environ: environ, Set: set})
	var problems Problems
	if err != nil && !errors.As(err, &problems) {
		t.Fatalf("the error is not Problems: %v", err)
	}
	return c, problems
}

func TestExampleIsGood(t *testing.T) {
	if _, problems := parse(t, Example(), nil, nil); problems != nil {
		t.Fatalf("the example as it is:\n%v", problems)
	}
}

var (
	keyLine   = regexp.MustCompile(`^( *)(#?)([a-z_]+):( .*)?$`)
	uncomment = regexp.MustCompile(`(?m)^( *)#([a-z_]+:)`)
)

// siteSpecific keys have a value in the example though they may be left out.
var siteSpecific = []string{"identity.workload_api", "store.redis.url", "store.redis.password_file", "keys.key_file"}

// manual is what the example says of each key: the comment above it, and whether it is commented out.
func manual(t *testing.T) (said map[string]string, out map[string]bool) {
	t.Helper()
	said, out = map[string]string{}, map[string]bool{}
	var section []string // that the line is in, outermost first
	comment := ""
	for line := range strings.Lines(Example()) {
		line = strings.TrimRight(line, "\n")
		parts := keyLine.FindStringSubmatch(line)
		if parts == nil {
			comment = strings.TrimSpace(comment + " " + strings.TrimLeft(line, " #"))
			if line == "" {
				comment = ""
			}
			continue
		}
		section = append(section[:len(parts[1])/2], parts[3])
		if key := strings.Join(section, "."); parts[4] != "" {
			said[key], out[key] = comment, parts[2] == "#"
		}
		comment = ""
	}
	return said, out
}

// TestExampleIsTheManual: the example has every key of the struct and no other, in its order, with
// its default and its bounds, in words that change when those do.
func TestExampleIsTheManual(t *testing.T) {
	said, out := manual(t)
	all, problems := parse(t, uncomment.ReplaceAllString(Example(), "$1$2"), nil, nil)
	for _, p := range problems {
		if !strings.Contains(p.Text, "name one source") { // the one thing that cannot be had at once
			t.Errorf("with everything uncommented: %v", p)
		}
	}
	defaults := Default()
	for i, s := range defaults.settings() {
		shown := s.text()
		comment, ok := said[s.name]
		if !ok {
			t.Errorf("the example does not have %s", s.name)
			continue
		}
		if all.Origin(s.name).File == "" {
			t.Errorf("%s is not read from the example", s.name)
		}
		if need := slices.Contains(required, s.name) || slices.Contains(siteSpecific, s.name); out[s.name] == need {
			t.Errorf("%s: what a site must say, and nothing else, has a value in the example", s.name)
		}
		want := "Default: " + shown + "."
		if shown == "" {
			want = "Default: "
		}
		if slices.Contains(required, s.name) {
			want = "Required."
		}
		if !strings.Contains(comment, want) {
			t.Errorf("%s: the comment must say %q, and says %q", s.name, want, comment)
		}
		if got := all.settings()[i].text(); shown != "" && got != shown {
			t.Errorf("%s: the example shows %s, and the default is %s", s.name, got, shown)
		}
		if b, ok := counts[s.name]; ok && !strings.Contains(comment, fmt.Sprintf("%d to %d", b[0], b[1])) {
			t.Errorf("%s: the comment must have the bounds %d to %d: %q", s.name, b[0], b[1], comment)
		}
		if b, ok := bounds[s.name]; ok && !strings.Contains(comment, duration(b[0])+" to "+duration(b[1])) {
			t.Errorf("%s: the comment must have the bounds %s to %s: %q", s.name, duration(b[0]), duration(b[1]), comment)
		}
		if s.value.Kind() == reflect.Slice && s.value.Type().Elem().Kind() == reflect.Struct {
			for _, part := range fields("", reflect.New(s.value.Type().Elem()).Elem()) {
				if !strings.Contains(comment, part.name) {
					t.Errorf("%s: the comment must say what %s is: %q", s.name, part.name, comment)
				}
			}
		}
		for _, choice := range choices[s.name] {
			if !strings.Contains(comment, choice) {
				t.Errorf("%s: the comment must name the choice %s: %q", s.name, choice, comment)
			}
		}
		delete(said, s.name)
	}
	if len(said) > 0 {
		t.Errorf("the example has keys that are not there: %v", said)
	}
}

// TestVariables: no two keys have the same variable, and each variable sets its key, over the file.
func TestVariables(t *testing.T) {
	seen := map[string]string{}
	for _, s := range Default().settings() {
		name := Variable(s.name)
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s have the same variable %s", s.name, other, name)
		}
		seen[name] = s.name
		value := "x"
		if s.value.Kind() == reflect.Int {
			value = "1"
		}
		if b, ok := bounds[s.name]; ok {
			value = b[1].String()
		}
		if s.name == "identity.federation" {
			value = "[{trust_domain: a, file: b}]"
		}
		if s.name == "operators.certificates" {
			value = "[{name: a}]"
		}
		if options := choices[s.name]; options != nil {
			value = options[len(options)-1]
		}
		c, _ := parse(t, Example(), []string{name + "=" + value}, nil)
		if got := c.Origin(s.name).String(); got != "environment "+name {
			t.Errorf("%s comes from %s", s.name, got)
		}
		c, _ = parse(t, Example(), []string{name + "=" + value}, []string{s.name + "=" + value})
		if got := c.Origin(s.name).String(); got != "--set" {
			t.Errorf("%s with --set comes from %s", s.name, got)
		}
		c, _ = parse(t, Example(), []string{name + "="}, nil)
		if got := c.Origin(s.name).Variable; got != "" {
			t.Errorf("an empty variable has set %s", s.name)
		}
	}
}

// TestBounds: each limit is allowed, and one past it is refused.
func TestBounds(t *testing.T) {
	for _, s := range Default().settings() {
		b, ok := bounds[s.name]
		if _, isDuration := s.value.Interface().(time.Duration); isDuration != ok {
			t.Errorf("%s: every duration has bounds, and nothing else", s.name)
		}
		if !ok {
			continue
		}
		for _, value := range []time.Duration{b[0], b[1], b[0] - 1, b[1] + 1, 0, -b[0]} {
			good := b[0] <= value && value <= b[1]
			_, problems := parse(t, Example(), nil, []string{s.name + "=" + value.String()})
			if good != (problems == nil) {
				t.Errorf("%s at %s: %v", s.name, value, problems)
			}
		}
	}
}

// TestCounts is TestBounds for numbers.
func TestCounts(t *testing.T) {
	for _, s := range Default().settings() {
		b, ok := counts[s.name]
		if (s.value.Kind() == reflect.Int) != ok {
			t.Errorf("%s: every number has bounds, and nothing else", s.name)
		}
		if !ok {
			continue
		}
		for value, good := range map[string]bool{
			strconv.Itoa(b[0]): true, strconv.Itoa(b[1]): true, strconv.Itoa(b[0] - 1): false, strconv.Itoa(b[1] + 1): false, "many": false, "1.5": false, "": false,
		} {
			_, problems := parse(t, Example(), nil, []string{s.name + "=" + value})
			if good != (problems == nil) {
				t.Errorf("%s at %q: %v", s.name, value, problems)
			}
		}
	}
}

func TestEveryTypeIsRead(t *testing.T) {
	for _, s := range Default().settings() {
		if s.value.Kind() == reflect.Interface || !s.value.CanSet() {
			t.Errorf("%s cannot be set", s.name)
		}
		_ = s.text() // panics for a type that it does not know
	}
}

// good has the required keys alone.
const good = `issuer: https://a:1
broker_url: https://a:2
identity: {workload_api: "unix:///s"}
inventory: i
audit: {log: l}
store: {type: memory}
`

// federated is good with one federated trust domain.
func federated(text string) string {
	return strings.Replace(good, `"unix:///s"`, `"unix:///s", federation: [{`+text+`}]`, 1)
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string // all of what is reported
	}{
		"nothing":           {"", []string{"audit.log is missing", "broker_url is missing", "identity.workload_api is missing", "inventory is missing", "issuer is missing", "store.type is missing"}},
		"unknown":           {good + "brokerurl: x\n", []string{"errand.yaml:7:1: brokerurl is not a key; did you mean broker_url?"}},
		"far from any":      {good + "colour: x\n", []string{"errand.yaml:7:1: colour is not a key; there are audit, broker_url,"}},
		"wrong place":       {good + "log: {ops: x}\n", []string{"errand.yaml:7:7: log.ops is not a key; did you mean listeners.ops?"}},
		"misspelt required": {strings.Replace(good, "inventory", "inventry", 1), []string{"errand.yaml:4:1: inventry is not a key; did you mean inventory?"}},
		"another URL":       {strings.Replace(good, "type: memory", "type: redis, redis: {url: 'http://h:6379'}", 1) + "keys: {key_file: k}\n", []string{"store.redis.url is http://h:6379, and that cannot be used: redis: store.redis.url must begin with redis://"}},
		"twice":             {good + "issuer: x\n", []string{`errand.yaml:7:1: not valid YAML: mapping key "issuer" already defined at [1:1]`}},
		"twice, dotted":     {good + "store.type: redis\n", []string{"errand.yaml:7:1: store.type must stand under its section: type, below store"}},
		"not YAML":          {"issuer: 'x\n", []string{"errand.yaml:1:9: not valid YAML"}},
		"a tab":             {good + "log:\n\tlevel: info\n", []string{`errand.yaml:8:1: not valid YAML: found character '\t' that cannot start any token; indent with spaces`}},
		"a tab in quotes":   {good + "log: {level: \"\n\tinfo\"}\n", []string{"errand.yaml:8:1: not valid YAML: tab character cannot be used for indentation in double-quoted text; indent with spaces"}},
		"a list":            {"- a\n", []string{"errand.yaml:1:1: the file must have keys"}},
		"two documents":     {good + "---\n" + good, []string{"errand.yaml:8:7: there is a second document"}},
		"no unit":           {good + "keys:\n  period: 30\n", []string{`errand.yaml:8:11: keys.period is "30"; it must be a duration with its unit`}},
		"a list for one":    {good + "log: {level: [a]}\n", []string{"errand.yaml:7:14: log.level must be a single value"}},
		"a value for keys":  {good + "log: loud\n", []string{"errand.yaml:7:1: log must have keys with values below it: log.format, log.level"}},
		"nothing for a key": {good + "log:\n  level:\n", []string{"log.level has no value"}},
		"anchor":            {good + "log: {level: &a info}\n", []string{"log.level has an anchor"}},
		"tag":               {good + "log: {level: !!str info}\n", []string{"log.level has an anchor, alias or tag"}},
		"no choice":         {good + "log: {level: loud}\n", []string{`errand.yaml:7:14: log.level is "loud"; it must be debug, info, warn or error`}},
		"address":           {good + "listeners: {workload: 8443}\n", []string{`errand.yaml:7:23: listeners.workload is "8443"; it must be host:port`}},
		"port too large":    {good + "listeners: {workload: \":99999\"}\n", []string{`errand.yaml:7:23: listeners.workload is ":99999"; there is no port 99999, they go from 1 to 65535`}},
		"no such port":      {good + "listeners: {public: \":htpps\"}\n", []string{`errand.yaml:7:21: listeners.public is ":htpps"; there is no port htpps`}},
		"a URL's port":      {strings.Replace(good, "a:1", "a:99999", 1), []string{`errand.yaml:1:9: issuer is "https://a:99999"; there is no port 99999`}},
		"one address":       {good + "listeners: {public: \":8443\"}\n", []string{`errand.yaml:7:21: listeners.public is ":8443", which listeners.workload has already (":8443")`}},
		"one of all":        {good + "listeners: {workload: \"10.0.0.5:443\", public: \"0.0.0.0:https\"}\n", []string{`errand.yaml:7:47: listeners.public is "0.0.0.0:https", which listeners.workload has already ("10.0.0.5:443")`}},
		"operators, too":    {good + "listeners: {operator: \"[::]:8444\"}\noperators: {admin: [\"spiffe://a/b\"]}\n", []string{`errand.yaml:7:23: listeners.operator is "[::]:8444", which listeners.public has already`}},
		"public operations": {good + "listeners: {ops: \":9090\"}\n", []string{`errand.yaml:7:18: listeners.ops is ":9090"; it must be a loopback address`}},
		"a URL with a path": {strings.Replace(good, "a:1", "a:1/x", 1), []string{`errand.yaml:1:9: issuer is "https://a:1/x"; it must be https://`}},
		"half an identity":  {strings.Replace(good, "workload_api: \"unix:///s\"", "key: k", 1), []string{"identity.bundle is missing", "identity.certificate is missing"}},
		"two identities":    {strings.Replace(good, "identity: {", "identity: {certificate: c, ", 1), []string{"errand.yaml:3:42: identity.workload_api is set, and so are files"}},
		"no list":           {good + "operators: {admin: spiffe://a/b}\n", []string{"errand.yaml:7:20: operators.admin must be a list, as [a, b]"}},
		"list of lists":     {good + "operators: {admin: [[a]]}\n", []string{"operators.admin has an element that must be a single value"}},
		"no SPIFFE ID":      {good + "operators: {admin: [alice]}\n", []string{`errand.yaml:7:20: operators.admin has "alice", which is not a SPIFFE ID`}},
		"a trust domain":    {good + "operators: {viewer: [\"spiffe://a\"]}\n", []string{`operators.viewer has "spiffe://a", which is a trust domain`}},
		"in two roles":      {good + "operators: {viewer: [\"spiffe://a/b\"], admin: [\"spiffe://a/b\"]}\n", []string{`operators.admin has "spiffe://a/b", which is there already`}},
		"no certificates":   {good + "operators: {certificates: ada}\n", []string{"errand.yaml:7:27: operators.certificates must be a list of certificates, as [{certificate: "}},
		"no thumbprint":     {listed("name: ada, role: admin"), []string{"errand.yaml:7:27: operators.certificates[0].certificate is missing; it is what  openssl x509"}},
		"a SHA-1":           {listed("certificate: 0123456789abcdef0123456789abcdef01234567, name: ada, role: admin"), []string{`operators.certificates[0].certificate is "0123456789abcdef0123456789abcdef01234567", which is not the SHA-256`}},
		"listed twice":      {listed("certificate: " + hexPrint + ", name: ada, role: admin}, {certificate: " + base64Print + ", name: bob, role: viewer"), []string{"errand.yaml:7:27: operators.certificates[1].certificate is that of ada already"}},
		"without a name":    {listed("certificate: " + hexPrint + ", role: admin"), []string{"operators.certificates[0].name is missing"}},
		"a bad name":        {listed("certificate: " + hexPrint + ", role: admin, name: 'a b'"), []string{`operators.certificates[0].name is "a b"; it must be 1 to 64 letters`}},
		"a long name":       {listed("certificate: " + hexPrint + ", role: admin, name: " + strings.Repeat("a", 65)), []string{"it must be 1 to 64 letters"}},
		"no role":           {listed("certificate: " + hexPrint + ", name: ada"), []string{`operators.certificates[0].role is ""; it must be viewer, operator or admin`}},
		"unknown role":      {listed("certificate: " + hexPrint + ", name: ada, role: root"), []string{`operators.certificates[0].role is "root"; it must be viewer, operator or admin`}},
		"one name, 2 roles": {listed("certificate: " + hexPrint + ", name: ada, role: admin}, {certificate: " + otherPrint + ", name: ada, role: viewer"), []string{"operators.certificates[1].role is viewer, and ada has another certificate with the role admin"}},
		"unknown key":       {listed("certificat: " + hexPrint), []string{"errand.yaml:7:29: operators.certificates[0].certificat is not a key; there are certificate, name, role"}},
		"federation":        {federated("trust_domain: partner.example"), []string{"errand.yaml:3:51: identity.federation[0].file is missing, and so is url; name one of them"}},
		"two sources":       {federated("trust_domain: a, file: b, url: 'https://a'"), []string{"identity.federation[0].file is set, and so is url; name one of them"}},
		"federated twice":   {federated("trust_domain: a, file: b}, {trust_domain: a, file: c"), []string{`identity.federation[1].trust_domain is "a", which another one names already`}},
		"unknown part":      {federated("trust_domain: a, flie: b"), []string{"errand.yaml:3:70: identity.federation[0].flie is not a key; there are bootstrap, ca_file,"}},
		"part without unit": {federated("trust_domain: a, file: b, max_age: 3"), []string{`errand.yaml:3:88: identity.federation[0].max_age is "3"; it must be a duration`}},
		"part out of bound": {federated("trust_domain: a, file: b, max_age: 1s"), []string{`identity.federation[0].max_age is 1s; it must be 5m0s to 720h0m0s`}},
		"not a list":        {strings.Replace(good, "identity: {", "identity: {federation: {a: b}, ", 1), []string{"identity.federation must be a list of trust domains"}},
		"not a mapping":     {strings.Replace(good, "identity: {", "identity: {federation: [a], ", 1), []string{"errand.yaml:3:25: identity.federation[0] must have keys"}},
		"redis without":     {strings.Replace(good, "type: memory", "type: redis", 1), []string{"keys.key_file is missing; signing keys", "store.redis.url is missing"}},
		"two passwords": {
			strings.Replace(good, "type: memory", `type: redis, redis: {url: "redis://u:hunter2@h", password_file: f}`, 1) + "keys: {key_file: k}\n",
			[]string{"store.redis.url has a password, and so has store.redis.password_file"},
		},
		"half a client": {
			strings.Replace(good, "type: memory", `type: redis, redis: {url: "redis://h", certificate_file: c}`, 1) + "keys: {key_file: k}\n",
			[]string{"store.redis.certificate_file and store.redis.key_file belong together"},
		},
		"no number":       {strings.Replace(good, "type: memory", `type: memory, redis: {shards: many}`, 1), []string{`store.redis.shards is "many"; it must be a whole number`}},
		"several at once": {good + "log: {level: loud, fromat: json}\nkeys: {period: 1s}\n", []string{"log.level is", "log.fromat is not a key", "keys.period is 1s; it must be 10m to 2160h"}},
	} {
		_, problems := parse(t, c.text, nil, nil)
		if len(problems) != len(c.want) {
			t.Errorf("%s: %d problems, want %d:\n%v", name, len(problems), len(c.want), problems)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(problems[i].String(), want) {
				t.Errorf("%s: %q; want %q", name, problems[i], want)
			}
		}
	}
}

// TestAddressesSideBySide: these do not take each other's place.
func TestAddressesSideBySide(t *testing.T) {
	for name, text := range map[string]string{
		"two hosts":         `listeners: {workload: "10.0.0.5:8443", public: "10.0.0.6:8443"}`,
		"any port":          `listeners: {workload: "127.0.0.1:0", public: "127.0.0.1:0", ops: "127.0.0.1:0"}`,
		"nobody's listener": `listeners: {operator: ":8443"}`,
		"a named port":      `listeners: {public: ":https"}`,
	} {
		if _, problems := parse(t, good+text+"\n", nil, nil); problems != nil {
			t.Errorf("%s: %v", name, problems)
		}
	}
}

// TestSlips: every key with a letter left out or changed is refused, with the key that was meant.
func TestSlips(t *testing.T) {
	names := []string{}
	for _, s := range Default().settings() {
		names = append(names, s.name)
	}
	for _, key := range names {
		for i := range key {
			if key[i] == '.' || i == 0 && len(key) < 3 {
				continue
			}
			for _, slip := range []string{key[:i] + key[i+1:], key[:i] + "q" + key[i+1:]} {
				_, problems := parse(t, good, nil, []string{slip + "=x"})
				if want := "did you mean " + key + "?"; len(problems) == 0 || !strings.Contains(problems.Error(), want) {
					t.Errorf("%s: %v; want %s", slip, problems, want)
				}
			}
		}
	}
}

// TestOthersVariables: what clients and Kubernetes put into the environment is nobody's mistake.
func TestOthersVariables(t *testing.T) {
	_, problems := parse(t, good, []string{
		"ERRAND_BROKER_ID=spiffe://a/b", "ERRAND_OPERATOR_URL=https://a", "ERRAND_OPERATOR_CERT=/x", "ERRAND_OPERATOR_KEY=/x", "ERRAND_BUNDLE_FILE=/x", "ERRAND_IDENTITY_DIR=/x", "ERRAND_CONFIG=/x", "ERRAND_DEV_ORDERS=x",
		"ERRAND_SERVICE_HOST=10.0.0.1", "ERRAND_SERVICE_PORT=8443", "ERRAND_PORT=tcp://10.0.0.1:8443", "ERRAND_PORT_8443_TCP=x", "ERRAND_PORT_8443_TCP_ADDR=x",
		"ERRAND_STORE_PORT=tcp://10.0.0.2:6379", "ERRAND_STORE_SERVICE_HOST=10.0.0.2", "ERRAND_STORE_PORT_6379_TCP_PROTO=tcp",
	}, nil)
	if problems != nil {
		t.Error(problems)
	}
	_, problems = parse(t, good, []string{"ERRAND_LOG_LEVLE=debug"}, nil)
	if want := "environment ERRAND_LOG_LEVLE: there is no such key; did you mean ERRAND_LOG_LEVEL?"; len(problems) != 1 || !strings.Contains(problems.Error(), want) {
		t.Errorf("%v; want %s", problems, want)
	}
}

// TestVariablesThatAreNoKeys: a secret in the wrong variable, for instance, is not silently left out.
func TestVariablesThatAreNoKeys(t *testing.T) {
	_, problems := parse(t, good, []string{"ERRAND_STORE_PASSPHRASE=hunter2"}, nil)
	if len(problems) != 1 || !strings.Contains(problems.Error(), "environment ERRAND_STORE_PASSPHRASE: there is no such key; those of store are store.") ||
		strings.Contains(problems.Error(), "hunter2") {
		t.Error(problems)
	}
}

func TestWorkloadSocketOfTheEnvironment(t *testing.T) {
	without := strings.Replace(good, `workload_api: "unix:///s"`, "", 1)
	c, problems := parse(t, without, []string{"SPIFFE_ENDPOINT_SOCKET=unix:///t"}, nil)
	if problems != nil || c.Identity.WorkloadAPI != "unix:///t" || c.Origin("identity.workload_api").Variable != "SPIFFE_ENDPOINT_SOCKET" {
		t.Errorf("%q from %s: %v", c.Identity.WorkloadAPI, c.Origin("identity.workload_api"), problems)
	}
	c, problems = parse(t, good, []string{"SPIFFE_ENDPOINT_SOCKET=unix:///t"}, nil)
	if problems != nil || c.Identity.WorkloadAPI != "unix:///s" {
		t.Errorf("%q: %v", c.Identity.WorkloadAPI, problems)
	}
	files := strings.Replace(good, `workload_api: "unix:///s"`, "certificate: c, key: k, bundle: b", 1)
	c, problems = parse(t, files, []string{"SPIFFE_ENDPOINT_SOCKET=unix:///t"}, nil)
	if problems != nil || c.Identity.WorkloadAPI != "" {
		t.Errorf("files, and %q: %v", c.Identity.WorkloadAPI, problems)
	}
}

func TestLists(t *testing.T) {
	for text, want := range map[string][]string{
		"spiffe://a/b": {"spiffe://a/b"}, "spiffe://a/b,spiffe://a/c": {"spiffe://a/b", "spiffe://a/c"}, " spiffe://a/b, spiffe://a/c ": {"spiffe://a/b", "spiffe://a/c"},
	} {
		c, problems := parse(t, good, []string{"ERRAND_OPERATORS_ADMIN=" + text}, nil)
		if problems != nil || !slices.Equal(c.Operators.Admin, want) {
			t.Errorf("%q is %q: %v", text, c.Operators.Admin, problems)
		}
	}
	c, problems := parse(t, good+"operators:\n  viewer: []\n  admin:\n  - spiffe://a/b\n  - \"spiffe://a/c\"\n", nil, nil)
	if problems != nil || len(c.Operators.Viewer) != 0 || !slices.Equal(c.Operators.Admin, []string{"spiffe://a/b", "spiffe://a/c"}) {
		t.Errorf("%+v: %v", c.Operators, problems)
	}
}

// What certificates are listed by: hexPrint and base64Print are one.
const (
	hexPrint    = "2F:67:0C:3D:64:81:B3:70:AC:CF:D8:F2:25:3A:10:DF:A3:12:B0:FB:94:6F:AF:97:E4:D5:F1:FC:D8:25:A7:1D"
	base64Print = "L2cMPWSBs3Csz9jyJToQ36MSsPuUb6-X5NXx_Nglpx0"
	otherPrint  = "0000000000000000000000000000000000000000000000000000000000000001"
)

// listed is good with certificates of operators.
func listed(text string) string { return good + "operators: {certificates: [{" + text + "}]}\n" }

// TestListedCertificates: each form of a thumbprint is read, shown, and given to the replica with its name and role.
func TestListedCertificates(t *testing.T) {
	for _, text := range []string{hexPrint, base64Print, strings.ToLower(strings.ReplaceAll(hexPrint, ":", ""))} {
		c, problems := parse(t, listed("certificate: "+text+", name: ada, role: operator}, {certificate: "+otherPrint+", name: ada, role: operator"), nil, nil)
		if problems != nil {
			t.Fatal(problems)
		}
		roles, certificates := c.operators(func(_, format string, args ...any) { t.Errorf(format, args...) })
		if len(roles) != 1 || roles["certificate:ada"] != broker.RoleOperator || len(certificates) != 2 || certificates[base64Print] != "ada" {
			t.Errorf("%s: %v %v", text, roles, certificates)
		}
		if got := c.Show(); !slices.Contains(got, Shown{"operators.certificates", "ada operator " + text + ", ada operator " + otherPrint, "errand.yaml:7:27"}) {
			t.Errorf("shown: %v", got)
		}
	}
	c, problems := parse(t, good, []string{"ERRAND_OPERATORS_CERTIFICATES=[{certificate: " + base64Print + ", name: ada, role: admin}]"}, nil)
	if problems != nil || len(c.Operators.Certificates) != 1 {
		t.Errorf("%+v: %v", c.Operators, problems)
	}
}

// TestSecretsAreNotShown: a password in a URL is masked wherever the URL is shown, a broken one too.
func TestSecretsAreNotShown(t *testing.T) {
	for _, url := range []string{"redis://u:hunter2@h:6379/0", "redis://:hunter2@h", "redis://u:hunter2@h:port:port/%zz", "redis+sentinel://u:hunter2@h?master_name=x",
		"redis+sentinel://h?master_name=x&sentinel_password=hunter2",
		"u:hunter2@h:6379", "redis:u:hunter2@h", "redis:/u:hunter2@h", "redis://h?password=hunter2;x", "redis://h?PASSWORD=hunter2", "redis://h#hunter2",
		"redis://u:1/hunter2@h", "redis://u:1?hunter2@h", "redis://u:1#hunter2@h"} {
		text := strings.Replace(good, "type: memory", fmt.Sprintf("type: redis, redis: {url: %q, password_file: f}", url), 1) + "keys: {key_file: k}\n"
		c, problems := parse(t, text, nil, nil)
		for _, s := range c.Show() {
			if strings.Contains(s.Value, "hunter2") {
				t.Errorf("%s is shown as %s", s.Key, s.Value)
			}
		}
		if strings.Contains(problems.Error(), "hunter2") {
			t.Errorf("%s: %v", url, problems)
		}
	}
}

// TestCredentials: credential:NAME is a file in systemd's directory, and nothing else.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "redis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for path, want := range map[string]string{
		"/etc/x": "/etc/x", "": "", "credential:redis": filepath.Join(dir, "redis"), "credential:none": "!", "credential:": "!", "credential:../x": "!", "credential:..": "!", "credential:a/b": "!",
	} {
		got, err := secretFile(path)
		if want == "!" && err == nil || want != "!" && (err != nil || got != want) {
			t.Errorf("%q is %q, %v", path, got, err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := secretFile("credential:redis"); err == nil {
		t.Error("a credential without systemd")
	}
}

// TestNoSuchCredential: what is missing is a line in the unit, and not a file where systemd puts them.
func TestNoSuchCredential(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	c, problems := parse(t, strings.Replace(good, "type: memory", `type: redis, redis: {url: "redis://h", password_file: "credential:redis"}`, 1)+"keys: {key_file: \"credential:seal\"}\n", nil, nil)
	if problems != nil {
		t.Fatal(problems)
	}
	err := fmt.Sprint(c.CheckFiles())
	for _, want := range []string{
		"store.redis.password_file is \"credential:redis\", and there is no such credential; the systemd unit must have LoadCredential=redis:FILE, with the path of the file",
		"keys.key_file cannot be used: keys: there is no key file", "the systemd unit must have LoadCredential=seal:FILE",
	} {
		if !strings.Contains(err, want) {
			t.Errorf("%s\nwant %q", err, want)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	inventory := filepath.Join(dir, "inventory.yaml")
	if err := os.WriteFile(inventory, []byte("workloads: []\naudiences:\n- nme: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("identity:\n  certificate: %s/none.pem\n  key: %s\n  bundle: %s\ninventory: %s\naudit: {log: %s/no/audit.jsonl}\n", dir, dir, inventory, inventory, dir)
	c, _ := parse(t, text, nil, nil)
	err := c.CheckFiles()
	if err == nil {
		t.Fatal("nothing was found")
	}
	for i, want := range []string{
		"errand.yaml:2:16: identity.certificate cannot be read", "errand.yaml:3:8: identity.key is " + dir + ", which is a folder",
		"errand.yaml:5:12: inventory cannot be used", "errand.yaml:6:14: audit.log is",
	} {
		if got := err.(Problems)[i].String(); !strings.HasPrefix(got, want) {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

// TestByteOrderMark: one at the start of the file is no part of the first key, and of no line.
func TestByteOrderMark(t *testing.T) {
	c, problems := parse(t, "\ufeff"+good, nil, nil)
	if problems != nil || c.Origin("issuer").String() != "errand.yaml:1:9" {
		t.Errorf("the issuer is at %s: %v", c.Origin("issuer"), problems)
	}
}

// TestCheckPairs: files that can be read, and do not belong together.
func TestCheckPairs(t *testing.T) {
	d := newDomains(t)
	certificate, key, err := issue(t, d.partner, "spiffe://partner.example/worker").Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d.write("other.pem", string(certificate))
	d.write("other.key", string(key))
	d.write("seal", strings.Repeat("s", keys.SealBytes))
	const unfit = "identity.certificate cannot be used: "
	for name, c := range map[string]struct{ certificate, key, bundle, client, clientKey, want string }{
		"all right":             {"svid.pem", "key.pem", "example.org.pem", "other.pem", "other.key", ""},
		"another's key":         {"svid.pem", "other.key", "example.org.pem", "other.pem", "other.key", unfit},
		"another's authorities": {"svid.pem", "key.pem", "partner.example.pem", "other.pem", "other.key", unfit},
		"another's key, Redis":  {"svid.pem", "key.pem", "example.org.pem", "other.pem", "key.pem", "store.redis.certificate_file and store.redis.key_file cannot be used together: tls: private key does not match public key"},
	} {
		at := func(name string) string { return filepath.Join(d.dir, name) }
		text := strings.NewReplacer(
			`workload_api: "unix:///s"`, fmt.Sprintf("certificate: %s, key: %s, bundle: %s", at(c.certificate), at(c.key), at(c.bundle)),
			"inventory: i", "inventory: "+at("inventory.yaml"), "log: l", "log: "+at("log"),
			"type: memory", fmt.Sprintf(`type: redis, redis: {url: "rediss://h", certificate_file: %s, key_file: %s}`, at(c.client), at(c.clientKey)),
		).Replace(good) + "keys: {key_file: " + at("seal") + "}\n"
		config, problems := parse(t, text, nil, nil)
		if problems != nil {
			t.Fatal(problems)
		}
		err := config.CheckFiles()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.(Problems)) != 1) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestLargestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "errand.yaml")
	for size, ok := range map[int]bool{MaxFile: true, MaxFile + 1: false} {
		text := good + strings.Repeat("#", size-len(good)-1) + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(Sources{File: path}); ok != (err == nil) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", 90 * time.Second: "1m30s", time.Hour: "1h", 25 * time.Hour: "25h",
		time.Hour + time.Second: "1h0m1s", 10 * time.Minute: "10m", 20 * time.Second: "20s", time.Hour + 10*time.Minute: "1h10m",
	} {
		if got := duration(d); got != want {
			t.Errorf("%s is %s", want, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add(good)
	f.Add("a: &x [*x]")
	f.Add("? {a: b}\n: c\n")
	f.Add("<<: *a\n---\n...\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > MaxFile {
			return
		}
		lines := strings.Count(text, "\n") + strings.Count(text, "\r") + 2 // YAML ends a line with either
		c, err := Parse([]byte(text), Sources{File: "errand.yaml"})
		if c == nil {
			t.Fatal("no configuration")
		}
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Fatalf("the error is not Problems: %v", err)
		}
		for _, p := range problems {
			if p.Text == "" || p.Origin.File != "" && (p.Origin.Line < 1 || p.Origin.Line > lines) {
				t.Fatalf("a problem without a place: %+v", p)
			}
		}
		if err == nil && (c.Issuer == "" || c.Inventory == "") {
			t.Fatal("a required key is missing")
		}
	})
}
