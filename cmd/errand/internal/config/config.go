// Package config is the configuration file of errand serve: one YAML file, whose manual is the
// commented example that Example returns. Read it with Load, look at what it names on the disk with
// Config.CheckFiles, and turn it into a replica with Config.Replica.
//
// A value comes from the first of these that has one: a setting of the command line, an environment
// variable, the file, the default. Every key has an environment variable, named after it: store.type
// is ERRAND_STORE_TYPE. Config remembers where each value came from.
//
// Load reports every mistake at once, each with its place, its key and how to mend it. What is not a
// key is refused, so that a misspelt one is not a silent default.
package config

import (
	_ "embed" // for the example
	"reflect"
	"strings"
	"time"

	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/store/redis"
)

// Config is what one replica is told. The names in the file are those of the tags; what each means
// is in the example.
type Config struct {
	Issuer    string `yaml:"issuer"`
	BrokerURL string `yaml:"broker_url"`

	Listeners Listeners     `yaml:"listeners"`
	Identity  Identity      `yaml:"identity"`
	Inventory string        `yaml:"inventory"`
	Audit     Audit         `yaml:"audit"`
	Store     Store         `yaml:"store"`
	Keys      Keys          `yaml:"keys"`
	Operators Operators     `yaml:"operators"`
	Limits    Limits        `yaml:"limits"`
	Drain     time.Duration `yaml:"drain"`
	Log       Log           `yaml:"log"`

	origins map[string]Origin // by key; a key that is not there has its default
}

// Listeners are addresses to listen on, as host:port.
type Listeners struct {
	Workload string `yaml:"workload"`
	Public   string `yaml:"public"`
	Operator string `yaml:"operator"`
	Ops      string `yaml:"ops"`
}

// Identity says where the replica's own SVID comes from: WorkloadAPI, or the three files.
type Identity struct {
	WorkloadAPI string        `yaml:"workload_api"`
	Certificate string        `yaml:"certificate"`
	Key         string        `yaml:"key"`
	Bundle      string        `yaml:"bundle"`
	MaxSVIDLife time.Duration `yaml:"max_svid_life"`
	MaxAge      time.Duration `yaml:"max_age"`
	Wait        time.Duration `yaml:"wait"`
	Federation  []Federation  `yaml:"federation"`
	Withdrawal  time.Duration `yaml:"withdrawal"`
}

// Federation is another trust domain, and where its bundle comes from. The fields are those of
// identity.Federation.
type Federation struct {
	TrustDomain string        `yaml:"trust_domain"`
	File        string        `yaml:"file"`
	URL         string        `yaml:"url"`
	Profile     string        `yaml:"profile"`
	CAFile      string        `yaml:"ca_file"`
	EndpointID  string        `yaml:"endpoint_id"`
	Bootstrap   string        `yaml:"bootstrap"`
	MaxAge      time.Duration `yaml:"max_age"`
}

// Audit is the audit log.
type Audit struct {
	Log string `yaml:"log"`
}

// Store is where tasks and grants are kept.
type Store struct {
	Type  string `yaml:"type"`
	Redis Redis  `yaml:"redis"`
}

// Redis is where the store is when its type is redis.
type Redis struct {
	URL                  string `yaml:"url"`
	PasswordFile         string `yaml:"password_file"`
	SentinelPasswordFile string `yaml:"sentinel_password_file"`
	CAFile               string `yaml:"ca_file"`
	CertificateFile      string `yaml:"certificate_file"`
	KeyFile              string `yaml:"key_file"`
	Deployment           string `yaml:"deployment"`
	Prefix               string `yaml:"prefix"`
	Shards               int    `yaml:"shards"`
}

// Keys are those that sign tokens.
type Keys struct {
	KeyFile   string        `yaml:"key_file"`
	Algorithm string        `yaml:"algorithm"`
	Period    time.Duration `yaml:"period"`
}

// Operators has the SPIFFE IDs of each role, and those who have none.
type Operators struct {
	Viewer       []string      `yaml:"viewer"`
	Operator     []string      `yaml:"operator"`
	Admin        []string      `yaml:"admin"`
	Certificates []Certificate `yaml:"certificates"`
}

// Certificate is an operator who has a certificate and no SPIFFE ID.
type Certificate struct {
	Certificate string `yaml:"certificate"` // its SHA-256, as identity.ParseThumbprint takes it
	Name        string `yaml:"name"`
	Role        string `yaml:"role"`
}

// Limits are what a replica takes on at most. The fields are those of httpapi.Limits.
type Limits struct {
	IssueRate            int           `yaml:"issue_rate"`
	IssueBurst           int           `yaml:"issue_burst"`
	Rate                 int           `yaml:"rate"`
	Burst                int           `yaml:"burst"`
	Issuing              int           `yaml:"issuing"`
	Others               int           `yaml:"others"`
	Connections          int           `yaml:"connections"`
	ConnectionsOfAddress int           `yaml:"connections_of_address"`
	Handshakes           int           `yaml:"handshakes"`
	HandshakeTime        time.Duration `yaml:"handshake_time"`
	ConnectionAge        time.Duration `yaml:"connection_age"`
}

// Log is what is said on stderr.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// DefaultDrain is longer than balancers take to notice that check every second, and believe the second answer.
const DefaultDrain = 3 * time.Second

//go:embed errand.yaml
var example string

// Example is the commented file that is the manual: every key with its meaning, default and bounds.
func Example() string { return example }

// Default has what a key is when nothing says otherwise.
func Default() *Config {
	return &Config{
		Listeners: Listeners{
			Workload: server.DefaultWorkloadAddr, Public: server.DefaultPublicAddr,
			Operator: server.DefaultOperatorAddr, Ops: server.DefaultOpsAddr,
		},
		Identity: Identity{
			MaxSVIDLife: identity.DefaultMaxSVIDLife, MaxAge: identity.DefaultMaxAge, Wait: time.Minute, Withdrawal: server.DefaultWithdrawal,
		},
		Store: Store{Redis: Redis{Deployment: redis.DefaultDeployment, Prefix: redis.DefaultPrefix}},
		Keys:  Keys{Algorithm: string(keys.ES256), Period: keys.DefaultPeriod},
		Limits: Limits{
			IssueRate: httpapi.DefaultIssueRate, IssueBurst: httpapi.DefaultIssueBurst, Rate: httpapi.DefaultRate, Burst: httpapi.DefaultBurst,
			Issuing: httpapi.DefaultIssuing, Others: httpapi.DefaultOthers,
			Connections: httpapi.DefaultConnections, ConnectionsOfAddress: httpapi.DefaultPerAddress, Handshakes: httpapi.DefaultHandshakes,
			HandshakeTime: httpapi.DefaultHandshakeTime, ConnectionAge: httpapi.DefaultConnectionAge,
		},
		Drain:   DefaultDrain,
		Log:     Log{Level: "info", Format: "text"},
		origins: map[string]Origin{},
	}
}

// setting is one key, and where its value is.
type setting struct {
	name  string // as "store.type"
	value reflect.Value
}

// settings are all keys of a configuration, in the order of the example.
func (c *Config) settings() []setting { return fields("", reflect.ValueOf(c).Elem()) }

func fields(prefix string, v reflect.Value) []setting {
	var out []setting
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag.Get("yaml")
		if tag == "" {
			continue
		}
		if field := v.Field(i); field.Kind() == reflect.Struct {
			out = append(out, fields(prefix+tag+".", field)...)
		} else {
			out = append(out, setting{prefix + tag, field})
		}
	}
	return out
}

// Variable is the environment variable of a key.
func Variable(key string) string {
	return "ERRAND_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}
