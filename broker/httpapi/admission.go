package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"sync"

	"github.com/errandhq/errand/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kinds of request. Each has rates and places of its own, so that one cannot take the other's.
const (
	kindIssue = "issue" // begins, delegates or adopts a task, or asks for a token
	kindOther = "other" // ends, heartbeats, reads
	kindUsage = "usage" // reports of usage

	kindOutside = "outside" // comes from callers of the public listener, or is about what they say
	kindAck     = "ack"     // verifiers' acknowledgements
	kindList    = "list"    // operators' lists, which have places and no rate
)

// Bounds of reports of usage. Each is large to read and up to a thousand events to record, so that they
// must not come at the rate of what is small, nor keep the audit log from those who wait for a token.
const (
	UsageRate     = 20 // reports a second of one SPIFFE ID
	UsageBurst    = 200
	maxRecording  = 4  // reports that are recorded at once
	maxReading    = 16 // and whose bodies are read or in memory; the same of events of sources
	maxReadingOne = 8  // of these, of one SPIFFE ID or source
)

// Bounds of what comes from outside. A caller of the public listener may be anybody, and there may be a
// balancer between, whose address all of them have.
const (
	AddressRate       = 200  // requests a second of one address that need a secret
	AddressBurst      = 1000 // that may come at once
	SourceRate        = 100  // events a second of one source
	SourceBurst       = 1000
	maxOutside        = 64  // that are worked on at once
	maxReadingOutside = 512 // and whose bodies are read
	maxReadingAddress = 256 // of these, of one address
)

// admission decides which requests are worked on, and when.
type admission struct {
	rates   map[string]*rates[spiffeid.ID]
	places  map[string]*places
	reading reading[spiffeid.ID]

	// Of the public listener, where nobody has shown who they are before their request is read.
	addresses *rates[netip.Prefix]
	outside   reading[netip.Prefix]

	// Of sources, by name, wherever they come.
	sources *rates[string]
	hooks   reading[string]
}

func newAdmission(l Limits, known func(spiffeid.ID) bool) *admission {
	return &admission{
		rates: map[string]*rates[spiffeid.ID]{
			kindIssue: newRates(l.IssueRate, l.IssueBurst, known), kindOther: newRates(l.Rate, l.Burst, known),
			kindUsage:   newRates(min(UsageRate, l.Rate), min(UsageBurst, l.Burst), known),
			kindOutside: newRates(l.Rate, l.Burst, known),
			kindAck:     newRates(AckRate, AckBurst, known),
		},
		places:  map[string]*places{kindIssue: newPlaces(l.Issuing), kindOther: newPlaces(l.Others), kindUsage: newPlaces(maxRecording), kindOutside: newPlaces(min(maxOutside, l.Others)), kindAck: newPlaces(maxAckAtOnce), kindList: newPlaces(MaxListing)},
		reading: reading[spiffeid.ID]{most: maxReading, mostOne: maxReadingOne},
		// Every address is known: more than there is room for share buckets by chance, and none has less for others.
		addresses: newRates(min(AddressRate, l.Rate), min(AddressBurst, l.Burst), func(netip.Prefix) bool { return true }),
		outside:   reading[netip.Prefix]{most: maxReadingOutside, mostOne: maxReadingAddress},
		sources:   newRates(min(SourceRate, l.Rate), min(SourceBurst, l.Burst), func(string) bool { return true }),
		hooks:     reading[string]{most: maxReading, mostOne: maxReadingOne},
	}
}

// knownTo says who is in an inventory: a workload, a server of an audience, or a source of ends.
func knownTo(registry broker.Registry) func(spiffeid.ID) bool {
	return func(id spiffeid.ID) bool {
		_, err := registry.Workload(id)
		_, noSource := registry.Source(id)
		return err == nil || noSource == nil || len(registry.Serves(id)) > 0
	}
}

// limited makes a router of one that asks the admission about each request.
func (r *router) limited() *router {
	r.admission, r.kind = r.api.admission, kindOther
	r.echo.Use(r.admit)
	return r
}

// issuing is the same router for routes that issue.
func (r *router) issuing() *router {
	issuing := *r
	issuing.kind = kindIssue
	return &issuing
}

// listing is the same router for lists.
func (r *router) listing() *router {
	listing := *r
	listing.admission, listing.kind = r.api.admission, kindList
	return &listing
}

// reporting is the same router for reports of usage, of which nothing is read but from a server of the
// audience, and of few at once.
func (r *router) reporting() *router {
	return r.guarded(kindUsage, func(req *http.Request) (*http.Request, func(), error) {
		w := workloadOf(req.Context())
		if err := r.api.mayRead(w, req.URL.Query().Get("aud")); err != nil {
			return nil, nil, err
		}
		if !r.api.admission.reading.enter(w.ID) {
			return nil, nil, errOverloaded
		}
		return req, func() { r.api.admission.reading.leave(w.ID) }, nil
	})
}

// reading counts the bodies that are in memory. One that sends them slowly has as many places as
// it may have, and leaves others some.
type reading[Peer comparable] struct {
	most, mostOne int // of all, and of one

	mu  sync.Mutex // guards what follows
	all int
	of  map[Peer]int
}

func (r *reading[Peer]) enter(id Peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all >= r.most || r.of[id] >= r.mostOne {
		return false
	}
	if r.of == nil {
		r.of = map[Peer]int{}
	}
	r.all++
	r.of[id]++
	return true
}

func (r *reading[Peer]) leave(id Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all--
	if r.of[id]--; r.of[id] == 0 {
		delete(r.of, id)
	}
}

// withinRate counts what is like so many requests of a workload.
func (a *API) withinRate(kind string, id spiffeid.ID, n int) error {
	return spend(a, kind, a.admission.rates[kind], id, n)
}

// withinAddress counts a request of an address.
func (a *API) withinAddress(remote string) error {
	return spend(a, kindOutside, a.admission.addresses, network(remote), 1)
}

// withinSource counts what is like so many events of a source.
func (a *API) withinSource(source broker.SourceRegistration, n int) error {
	return spend(a, kindOutside, a.admission.sources, source.Name, n)
}

func spend[Peer comparable](a *API, kind string, of *rates[Peer], peer Peer, n int) error {
	wait := of.take(peer, a.Now(), n)
	if wait == 0 {
		return nil
	}
	a.Limited(kind)
	return &rateLimited{wait}
}

// BeatsPerRequest is how many tasks of a heartbeat are like one request more: otherwise a thousand times as
// much could be asked of the store by heartbeats as by all else.
const BeatsPerRequest = 20

// within has a handler wait for a place among those of its kind. The body has been read by then and
// the answer is written after it, so that nobody keeps a place by being slow.
func within[Body, Answer any](r *router, h handler[Body, Answer]) handler[Body, Answer] {
	if r.admission == nil {
		return h
	}
	places := r.admission.places[r.kind]
	return func(ctx context.Context, req request[Body]) (answer Answer, err error) {
		if err := places.enter(ctx); err != nil {
			return answer, err
		}
		req.Leave = sync.OnceFunc(places.leave)
		defer req.Leave()
		return h(ctx, req)
	}
}

// Load says how many requests are worked on now, of those that issue and of all others.
func (a *API) Load() (issuing, others int) {
	return len(a.admission.places[kindIssue].taken), len(a.admission.places[kindOther].taken)
}
