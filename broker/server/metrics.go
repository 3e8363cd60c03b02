package server

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics counts what the audit log and the listeners see. No label has a value that a caller can
// choose: audiences are those of the registry, and IDs are never labels.
type metrics struct {
	registry *prometheus.Registry

	begun       prometheus.Counter
	ended       *prometheus.CounterVec
	issued      *prometheus.CounterVec
	decisions   *prometheus.CounterVec
	checks      *prometheus.CounterVec
	unreported  *prometheus.CounterVec
	events      *prometheus.CounterVec
	auditErrors prometheus.Counter
	requests    *prometheus.HistogramVec
	rateLimited *prometheus.CounterVec
	refused     *prometheus.CounterVec
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		begun:       prometheus.NewCounter(prometheus.CounterOpts{Name: "errand_tasks_begun_total", Help: "Tasks begun."}),
		ended:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_tasks_ended_total", Help: "Tasks ended, by final state and cause."}, []string{"outcome", "cause"}),
		issued:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_grants_issued_total", Help: "Grants issued, by audience."}, []string{"audience"}),
		decisions:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_decisions_total", Help: "Requests that were granted or refused."}, []string{"result"}),
		checks:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_token_checks_total", Help: "Checks of tokens that verifiers have reported, by audience and result."}, []string{"audience", "result"}),
		unreported:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_token_checks_lost_total", Help: "Checks that verifiers had no room to report on, by audience."}, []string{"audience"}),
		events:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_audit_events_total", Help: "Events in the audit log, by kind."}, []string{"kind"}),
		auditErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "errand_audit_errors_total", Help: "Failed writes of the audit log."}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "errand_http_request_duration_seconds", Help: "Requests, by listener, route, method and status.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"listener", "route", "method", "status"}),
		rateLimited: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_rate_limited_total", Help: "Requests refused since their sender sent too many, by kind: issue, usage, outside, ack, or other."}, []string{"kind"}),
		refused:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "errand_refused_connections_total", Help: "Connections that were not kept, by listener and the limit that was reached: connections, address, or handshakes."}, []string{"listener", "limit"}),
	}
	m.registry.MustRegister(m.begun, m.ended, m.issued, m.decisions, m.checks, m.unreported, m.events, m.auditErrors, m.requests, m.rateLimited, m.refused,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("errand_feed_subscribers", "Verifiers that follow the feed.", func() float64 { return float64(s.feed.Readers()) }),
		gauge("errand_feed_entries", "Denials held for the feed.", func() float64 { return float64(s.feed.Entries()) }),
		gauge("errand_ends_pending", "Ends in force on this replica that its store does not have yet.", func() float64 { return float64(s.broker.PendingEnds()) }),
		gauge("errand_verifiers", "Verifiers that are known to be at work.", func() float64 { return float64(s.broker.KnownVerifiers()) }),
		gauge("errand_task_followers", "Streams of workloads that follow their tasks.", func() float64 { return float64(s.broker.Followers()) }),
		gauge("errand_ready", "1 while the replica should get traffic.", func() float64 {
			if s.Ready() != nil {
				return 0
			}
			return 1
		}),
		gauge("errand_svid_expiry_seconds", "Until the replica's own SVID expires.", func() float64 {
			svid, err := s.config.Identity.GetX509SVID()
			if err != nil {
				return 0
			}
			return svid.Certificates[0].NotAfter.Sub(s.config.Now()).Seconds()
		}))
	return m
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) observe(listener, route, method string, status int, took time.Duration) {
	if !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost}, method) {
		method = "other"
	}
	m.requests.WithLabelValues(listener, route, method, strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *metrics) limited(kind string) { m.rateLimited.WithLabelValues(kind).Inc() }

// bound has a listener count its connections, and refuse what is too many.
func (m *metrics) bound(name string, l net.Listener, limits httpapi.Limits) net.Listener {
	bounded := httpapi.Bound(l, limits, func(limit string) { m.refused.WithLabelValues(name, limit).Inc() })
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "errand_connections", Help: "Open connections, by listener.", ConstLabels: prometheus.Labels{"listener": name},
	}, func() float64 { return float64(bounded.Connections()) }))
	return bounded
}

// load shows how many requests are worked on.
func (m *metrics) load(now func() (issuing, others int)) {
	const name, help = "errand_requests_at_work", "Requests of the workload listener that are worked on now, by kind: issue, or other."
	for kind, count := range map[string]func() int{
		"issue": func() int { n, _ := now(); return n }, "other": func() int { _, n := now(); return n },
	} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"kind": kind}},
			func() float64 { return float64(count()) }))
	}
}

// auditor counts what next has recorded.
func (m *metrics) auditor(next broker.Auditor) broker.Auditor { return &countingAuditor{m, next} }

type countingAuditor struct {
	*metrics
	next broker.Auditor
}

func (c *countingAuditor) Record(ctx context.Context, events ...broker.Event) error {
	if err := c.next.Record(ctx, events...); err != nil {
		c.auditErrors.Inc()
		return err
	}
	for _, e := range events {
		c.events.WithLabelValues(string(e.Kind)).Inc()
		switch e.Kind {
		case broker.EventTaskBegun:
			c.begun.Inc()
		case broker.EventTaskEnded:
			c.ended.WithLabelValues(string(e.State), string(e.Cause)).Inc()
		case broker.EventGrantIssued:
			c.issued.WithLabelValues(e.Audience).Inc()
			c.decisions.WithLabelValues("allow").Inc()
		case broker.EventDenied:
			c.decisions.WithLabelValues("deny").Inc()
		case broker.EventDeniedMore:
			c.decisions.WithLabelValues("deny").Add(float64(e.Count))
		case broker.EventGrantUsed:
			c.checks.WithLabelValues(e.Audience, "allowed").Add(float64(e.Usage.Allowed))
			c.checks.WithLabelValues(e.Audience, "refused").Add(float64(e.Usage.Refused))
		case broker.EventUsageLost:
			c.unreported.WithLabelValues(e.Audience).Add(float64(e.Lost))
		}
	}
	return nil
}
