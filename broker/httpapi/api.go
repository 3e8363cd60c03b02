package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
)

// Config has what the API stands on. All but AllKeys, Operators, IdentifyOperator, Version, Limits, Now, Logger, Metrics,
// Observe and Limited are required.
type Config struct {
	Broker   *broker.Broker
	Registry broker.Registry
	Feed     *feed.Feed
	Keys     func() keys.Set
	AllKeys  func() []keys.Key // for operators; required when there are any

	// Identify returns the verdict on the peer of a request.
	Identify func(*http.Request) (broker.Workload, error)

	// Operators may use the operator listener.
	Operators Operators
	// IdentifyOperator is Identify at that listener, but for the role; required when there are any.
	IdentifyOperator func(*http.Request) (broker.Operator, error)

	Issuer    string // the public listener's URL; the iss of every token
	BrokerURL string // the workload listener's URL
	Algorithm string // of the token keys
	Version   string // of the program, for workloads that look for a fault

	// Ready returns nil while the replica should get traffic; ErrStopping when it should not, though it
	// issues.
	Ready func() error

	Limits  Limits           // of all that is asked for
	Now     func() time.Time // for rates, and how often the log has what lasts
	Logger  *slog.Logger
	Metrics http.Handler // of /metrics
	Observe func(listener, route, method string, status int, took time.Duration)
	Limited func(kind string) // is told of each request over its rate: "issue", "usage", "outside", "ack" or "other"
}

// ErrStopping is why a replica is not ready that is about to stop. It serves everything until then.
var ErrStopping = errors.New("stopping")

// API has the handlers of one replica.
type API struct {
	Config
	admission *admission
	lasting   map[string]*broker.Fault // by the name of the problem
}

// New checks the configuration.
func New(c Config) (*API, error) {
	if c.Broker == nil || c.Registry == nil || c.Feed == nil || c.Keys == nil || c.Identify == nil || c.Ready == nil {
		return nil, errors.New("httpapi: Broker, Registry, Feed, Keys, Identify and Ready are required")
	}
	if len(c.Operators) > 0 && (c.AllKeys == nil || c.IdentifyOperator == nil) {
		return nil, errors.New("httpapi: AllKeys and IdentifyOperator are required when there are operators")
	}
	if c.Operators[""] != broker.NoRole {
		return nil, errors.New("httpapi: an operator without a name has a role")
	}
	if c.Issuer == "" || c.BrokerURL == "" {
		return nil, errors.New("httpapi: Issuer and BrokerURL are required")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(string, string, string, int, time.Duration) {}
	}
	if c.Limited == nil {
		c.Limited = func(string) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := c.Limits.Complete(); err != nil {
		return nil, fmt.Errorf("httpapi: %w", err)
	}
	return &API{Config: c, admission: newAdmission(c.Limits, knownTo(c.Registry)), lasting: newLasting(c.Logger)}, nil
}

// request is what a handler works on.
type request[Body any] struct {
	Workload broker.Workload // who asks, but for the operator listener
	Operator broker.Operator // who asks there
	ID       string          // the path's {id}
	Key      string          // the Idempotency-Key
	Body     Body
	Query    func(name string) string
	Leave    func() // gives up the request's place among those that are worked on, before the handler returns
	RawQuery string // for those that check all of it
}

// none is the body of a request that has none, or an empty object.
type none struct{}

// handler answers a request with a value that is encoded as JSON, or with an error of the table.
type handler[Body, Answer any] func(context.Context, request[Body]) (Answer, error)

// Workload returns the handler of the workload listener.
func (a *API) Workload() http.Handler {
	r := a.router("workload", a.identify).limited()
	issuing := r.issuing()
	get(r, wire.PathWhoami, a.whoami)
	post(issuing, wire.PathTasks, http.StatusCreated, a.begin)
	post(issuing, wire.PathTaskChildren, http.StatusCreated, a.child)
	get(r, wire.PathTask, a.task)
	post(issuing, wire.PathTaskTokens, http.StatusOK, a.issue)
	post(issuing, wire.PathDelegations, http.StatusCreated, a.delegate)
	post(issuing, wire.PathJoins, http.StatusCreated, a.join)
	post(issuing, wire.PathTaskAdopt, http.StatusOK, a.adopt)
	post(r, wire.PathTaskEnd, http.StatusOK, a.end)
	post(r, wire.PathHeartbeats, http.StatusOK, a.heartbeat)
	get(r, wire.PathGrant, a.grant)
	get(r, wire.PathFeedSnapshot, a.snapshot)
	get(r, wire.PathFeedPosition, a.position)
	post(r.reporting(), wire.PathFeedUsage, http.StatusNoContent, a.usage)
	post(r.outside(withSource), wire.PathCloudEvents, http.StatusOK, a.refEnded)
	post(r.acknowledging(), wire.PathFeedAcks, http.StatusNoContent, a.acknowledge)
	r.stream(wire.PathFeed, a.follow)
	r.stream(wire.PathEvents, a.events)
	return r
}

// Public returns the handler of the public listener.
func (a *API) Public() http.Handler {
	r := a.router("public", nil)
	r.raw(wire.PathJWKS, a.jwks)
	r.raw(wire.PathMetadata, a.metadata)
	r.raw(wire.PathProblem, a.problemPage)
	r.raw(wire.PathProblems, a.problemIndex)
	r.raw("/healthz", a.healthz)
	post(r.outside(withEndKey), wire.PathTaskEnd, http.StatusOK, a.endByKey)
	post(r.outside(withToken), wire.PathCloudEvents, http.StatusOK, a.refEnded)
	return r
}

// Ops returns the handler of the ops listener, which belongs on a loopback address.
func (a *API) Ops() http.Handler {
	r := a.router("ops", nil)
	r.raw("/healthz", a.healthz)
	r.raw("/readyz", a.readyz)
	if a.Metrics != nil {
		r.raw("/metrics", a.Metrics.ServeHTTP)
	}
	return r
}
