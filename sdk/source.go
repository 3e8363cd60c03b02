package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// IdentitySource is where the client's X509-SVID and the trust bundles come from.
type IdentitySource interface {
	// Open returns once there is an SVID, or ctx has ended; the error then has the last thing that
	// went wrong. The sources stay up to date until release is called.
	Open(ctx context.Context) (svids x509svid.Source, bundles x509bundle.Source, release func() error, err error)
	// String names the source in errors.
	String() string
}

// FromSource uses sources that the program has already, and does not close them.
func FromSource(svids x509svid.Source, bundles x509bundle.Source) IdentitySource {
	return given{svids, bundles}
}

type given struct {
	svids   x509svid.Source
	bundles x509bundle.Source
}

func (given) String() string { return "the program's own source" }

func (g given) Open(context.Context) (x509svid.Source, x509bundle.Source, func() error, error) {
	if g.svids == nil || g.bundles == nil {
		return nil, nil, nil, fmt.Errorf("a source is nil; FromSource needs both")
	}
	if _, err := g.svids.GetX509SVID(); err != nil {
		return nil, nil, nil, err
	}
	return g.svids, g.bundles, func() error { return nil }, nil
}

// FromWorkloadAPI uses the SPIFFE Workload API at addr, as "unix:///run/spire/agent.sock". Empty is
// SPIFFE_ENDPOINT_SOCKET. Where the agent gives the workload several SVIDs, pick says which one this
// client is: a SPIFFE ID, or the hint that the agent was given for it. Empty is the agent's default,
// the first.
func FromWorkloadAPI(addr, pick string) IdentitySource { return endpoint{addr, pick} }

type endpoint struct{ addr, pick string }

func (e endpoint) String() string {
	text := "the Workload API at "
	if e.addr == "" {
		text += EnvWorkloadSocket
	} else {
		text += e.addr
	}
	if e.pick != "" {
		text += fmt.Sprintf(" (%q)", e.pick)
	}
	return text
}

func (e endpoint) Open(ctx context.Context) (x509svid.Source, x509bundle.Source, func() error, error) {
	heard := &lastWord{}
	options := []workloadapi.ClientOption{workloadapi.WithLogger(heard)}
	if e.addr != "" {
		options = append(options, workloadapi.WithAddr(e.addr))
	}
	offer := &offer{pick: e.pick}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(options...), workloadapi.WithDefaultX509SVIDPicker(offer.choose))
	if err != nil {
		// The library waits without end and tells only its log why.
		if word := heard.get(); word != "" {
			err = fmt.Errorf("%s (%w)", word, err)
		}
		return nil, nil, nil, fmt.Errorf("%w; %s", err, advice(err.Error()))
	}
	for {
		_, err := source.GetX509SVID()
		if err == nil {
			return source, source, source.Close, nil
		}
		// It has SVIDs, and the one that is asked for may yet come.
		if source.WaitUntilUpdated(ctx) != nil {
			return nil, nil, nil, errors.Join(offer.missing(), source.Close())
		}
	}
}

// advice says what to do about what the Workload API has answered.
func advice(text string) string {
	if strings.Contains(text, "PermissionDenied") {
		return "the agent does not know this workload: register it there"
	}
	if strings.Contains(text, "socket URI") {
		return "write it as unix:///run/spire/agent/api.sock"
	}
	return "see that the agent runs, and that this process may open its socket"
}

// offer chooses among the SVIDs of a Workload API, and remembers what there was.
type offer struct {
	pick string

	mu   sync.Mutex
	seen []string
}

func (o *offer) choose(svids []*x509svid.SVID) (chosen *x509svid.SVID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = nil
	for _, svid := range svids {
		text := svid.ID.String()
		if svid.Hint != "" {
			text += fmt.Sprintf(" (hint %q)", svid.Hint)
		}
		o.seen = append(o.seen, text)
		if chosen == nil && (o.pick == "" || o.pick == svid.ID.String() || o.pick == svid.Hint) {
			chosen = svid
		}
	}
	return chosen
}

func (o *offer) missing() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Errorf("it has no SVID that is or has the hint %q, only %s; register the workload there, or pick one of these", o.pick, strings.Join(o.seen, ", "))
}

// lastWord keeps the last error that go-spiffe has logged.
type lastWord struct {
	mu   sync.Mutex
	text string
}

func (l *lastWord) Debugf(string, ...any) {}
func (l *lastWord) Infof(string, ...any)  {}
func (l *lastWord) Warnf(format string, args ...any) {
	l.Errorf(format, args...)
}

func (l *lastWord) Errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = fmt.Sprintf(format, args...)
}

func (l *lastWord) get() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

// opened is an identity source in use.
type opened struct {
	svids   x509svid.Source
	bundles x509bundle.Source
	release func() error
}

// openIdentity tries the sources in order. Each has an equal share of the time that is left.
func openIdentity(ctx context.Context, c *config) (opened, error) {
	start := time.Now()
	var sources []IdentitySource
	var tried line
	if c.identity != nil {
		sources = append(sources, c.identity)
	} else {
		if addr := c.getenv(EnvWorkloadSocket); addr != "" {
			sources = append(sources, FromWorkloadAPI(addr, ""))
		} else {
			tried = append(tried, fmt.Errorf("%s: not set", EnvWorkloadSocket))
		}
		if dir := c.getenv(EnvIdentityDir); dir != "" {
			sources = append(sources, FromDir(dir))
		} else {
			tried = append(tried, fmt.Errorf("%s: not set", EnvIdentityDir))
		}
	}
	for i, source := range sources {
		got, err := openOne(ctx, source, len(sources)-i, c.log)
		if err == nil {
			return got, nil
		}
		tried = append(tried, fmt.Errorf("%s: %w", source, err))
	}
	return opened{}, fmt.Errorf("sdk: %w after %s: %w. Set %s or %s, or use WithIdentity; run \"errand doctor\"",
		ErrNoIdentity, time.Since(start).Round(100*time.Millisecond), tried, EnvWorkloadSocket, EnvIdentityDir)
}

func openOne(ctx context.Context, source IdentitySource, shares int, log *slog.Logger) (opened, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(shares))
		defer cancel()
	}
	waiting := time.AfterFunc(quietStart, func() {
		log.Warn("errand: still waiting for an identity; is the agent running, and does it know this workload?", "source", source.String())
	})
	defer waiting.Stop()
	svids, bundles, release, err := source.Open(ctx)
	return opened{svids, bundles, release}, err
}
