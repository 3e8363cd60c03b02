package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
)

// The workloads of the tour.
const (
	reportName   = "report"
	strangerName = "stranger"
)

// Bound is P1's: how soon after the answer to the end a connected verifier must refuse.
const Bound = 250 * time.Millisecond

// Step is one line of the tour.
type Step struct {
	Name   string
	OK     bool
	Detail string        // what was seen
	More   []string      // further lines for people
	Took   time.Duration // of what the step is about
}

// MarshalJSON has what a script needs.
func (s Step) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Step   string  `json:"step"`
		OK     bool    `json:"ok"`
		Detail string  `json:"detail"`
		TookMS float64 `json:"took_ms"`
	}{s.Name, s.OK, s.Detail, float64(s.Took.Microseconds()) / 1000})
}

// TourConfig says how the tour is made.
type TourConfig struct {
	Dir    string   // as in Config
	Worker []string // a command line that runs Work, for a process that can be killed
	Fast   bool     // with presence where a lease would be waited for
}

// Tour shows the life and death of a token. It calls show after each step and returns whether all
// of them held; an error means that it could not be shown at all.
func Tour(ctx context.Context, c TourConfig, show func(Step)) (ok bool, err error) {
	local, err := Start(ctx, Config{Dir: c.Dir, Identities: []string{reportName}, Strangers: []string{strangerName}})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, local.Close()) }()
	t := &tour{TourConfig: c, local: local}
	defer t.close()
	if err := t.open(ctx); err != nil {
		return false, err
	}
	ok = true
	for _, step := range []struct {
		name string
		run  func(context.Context) (Step, error)
	}{
		{"identities", t.identities}, {"task", t.task}, {"token", t.token}, {"use", t.use},
		{"done", t.done}, {"reuse", t.reuse}, {"theft", t.theft},
		{"crash", t.crash}, {"cascade", t.cascade}, {"incident", t.incident},
	} {
		s, err := step.run(ctx)
		s.Name = step.name
		if err != nil {
			s.OK, s.Detail = false, err.Error()
		}
		show(s)
		if ok = ok && s.OK; !ok {
			return false, nil
		}
	}
	return ok, nil
}

// tour has what one step leaves for the next.
type tour struct {
	TourConfig
	local    *Local
	report   *devmode.Identity
	stranger *devmode.Identity
	client   *sdk.Client

	running *sdk.Task
	live    *sdk.Token
	after   refused // the first refusal after the end
	clients []*http.Client
}

func (t *tour) open(ctx context.Context) (err error) {
	if t.report, err = devmode.Open(ctx, t.local.Sockets[reportName]); err != nil {
		return err
	}
	if t.stranger, err = devmode.Open(ctx, t.local.Sockets[strangerName]); err != nil {
		return err
	}
	brokerID := id(BrokerName)
	t.client, err = sdk.New(ctx, sdk.WithBroker(t.local.BrokerURL), sdk.WithBrokerID(brokerID),
		sdk.WithIdentity(sdk.FromSource(t.report.Source(), t.report.Source())), sdk.WithLogger(slog.New(slog.DiscardHandler)))
	return err
}

func (t *tour) close() {
	for _, c := range t.clients {
		c.CloseIdleConnections()
	}
	if t.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// The environment goes away next, and with it whatever could not be ended.
		_ = t.client.Close(ctx)
	}
	for _, who := range []*devmode.Identity{t.report, t.stranger} {
		if who != nil {
			_ = who.Close()
		}
	}
}

func (t *tour) identities(context.Context) (Step, error) {
	return Step{
		OK: true, Took: t.local.Took, Detail: "a dev CA serves a SPIFFE Workload API socket to each",
		More: []string{
			fmt.Sprintf("%s   %s   %s", id(reportName), id(OrdersName), id(strangerName)),
		},
	}, nil
}

func (t *tour) task(ctx context.Context) (Step, error) {
	start := time.Now()
	task, err := t.begin(ctx)
	if err != nil {
		return Step{}, err
	}
	t.running = task
	return Step{
		OK: true, Took: time.Since(start),
		Detail: `report begins "monthly-export", purpose "try errand"`,
		More:   []string{task.ID()},
	}, nil
}

func (t *tour) begin(ctx context.Context) (*sdk.Task, error) {
	return t.client.Begin(ctx, sdk.TaskSpec{
		Name: "monthly-export", Purpose: "try errand", Audiences: []string{OrdersName}, Scopes: []string{"orders:read"},
		Tokens: []sdk.TokenRequest{}, // the next step shows it
	})
}

// token gets one that policy allows, and is refused one that it does not.
func (t *tour) token(ctx context.Context) (Step, error) {
	start := time.Now()
	token, err := t.running.Token(ctx, sdk.TokenRequest{Audience: OrdersName, Scopes: []string{"orders:read"}})
	took := time.Since(start)
	if err != nil {
		return Step{}, err
	}
	t.live = token
	_, denied := t.client.Begin(ctx, sdk.TaskSpec{
		Name: "monthly-export", Purpose: "try to get more", Audiences: []string{OrdersName}, Scopes: []string{"orders:write"},
	})
	var problem *sdk.Error
	if !errors.As(denied, &problem) || !errors.Is(denied, sdk.ErrDenied) {
		return Step{}, fmt.Errorf("orders:write was not denied: %v", denied)
	}
	return Step{
		OK: true, Took: took,
		Detail: fmt.Sprintf("orders:read granted for %d s, bound to report's certificate", int(time.Until(token.Expires).Round(time.Second).Seconds())),
		More:   []string{token.GrantID, fmt.Sprintf("orders:write DENIED by rule %s, %s", problem.Rule, problem.Decision)},
	}, nil
}

func (t *tour) use(ctx context.Context) (Step, error) {
	answer, err := t.send(ctx, t.report, t.live.Header())
	if err != nil {
		return Step{}, err
	}
	return Step{
		OK: answer.status == http.StatusOK, Took: answer.took,
		Detail: fmt.Sprintf("GET %s   %d %s", t.local.OrdersURL, answer.status, http.StatusText(answer.status)),
		More:   []string{"checked offline: the signature, the certificate, and a live list of what has ended"},
	}, nil
}

// done ends the task and sends its token again at once, since whoever watches takes time to read.
func (t *tour) done(ctx context.Context) (Step, error) {
	start := time.Now()
	receipt, err := t.running.Complete(ctx)
	ended := time.Now()
	if err != nil {
		return Step{}, err
	}
	if t.after, err = t.untilRefused(ctx, t.live.Header(), ended, Bound, 0); err != nil {
		return Step{}, err
	}
	return Step{
		OK: receipt.State == sdk.Completed && receipt.Grants == 1, Took: ended.Sub(start),
		Detail: fmt.Sprintf("the task returns: %s, %d grant dead", receipt.State, receipt.Grants),
		More:   []string{receipt.Event + " in the audit log"},
	}, nil
}

// refused is how a token was refused that was good before.
type refused struct {
	reply
	waited time.Duration // from what should have ended it until then
}

func (r refused) revoked() bool {
	return r.status == http.StatusUnauthorized && strings.Contains(r.reason, "revoked")
}

// untilRefused sends a token over the certificate that it is bound to until it is refused, or so much time has
// passed since then.
func (t *tour) untilRefused(ctx context.Context, header string, since time.Time, bound, pause time.Duration) (r refused, err error) {
	for {
		if r.reply, err = t.send(ctx, t.report, header); err != nil {
			return r, err
		}
		if r.waited = time.Since(since); r.status != http.StatusOK || r.waited > bound {
			return r, nil
		}
		time.Sleep(pause)
	}
}

// reuse shows what became of the token.
func (t *tour) reuse(context.Context) (Step, error) {
	left := time.Until(t.live.Expires).Round(time.Second)
	return Step{
		OK:     t.after.revoked() && t.after.waited <= Bound,
		Took:   t.after.waited,
		Detail: fmt.Sprintf("same token, %d s before it expires: %d %s", int(left.Seconds()), t.after.status, t.after.reason),
		More:   []string{"the time is from the answer to the end until the refusal"},
	}, nil
}

// accepted is a task with a token that the resource server takes from report. The caller closes the task.
func (t *tour) accepted(ctx context.Context) (*sdk.Task, *sdk.Token, error) {
	task, err := t.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	token, err := task.Token(ctx, sdk.TokenRequest{Audience: OrdersName})
	if err == nil {
		err = t.accept(ctx, token.Header())
	}
	if err != nil {
		return nil, nil, errors.Join(err, task.Close())
	}
	return task, token, nil
}

// accept sends a token of report that is to be accepted.
func (t *tour) accept(ctx context.Context, header string) error {
	answer, err := t.send(ctx, t.report, header)
	if err == nil && answer.status != http.StatusOK {
		err = fmt.Errorf("a token was refused to its owner: %d %s", answer.status, answer.reason)
	}
	return err
}

// theft presents a live token from another workload's certificate.
func (t *tour) theft(ctx context.Context) (Step, error) {
	task, token, err := t.accepted(ctx)
	if err != nil {
		return Step{}, err
	}
	defer task.Close()
	answer, err := t.send(ctx, t.stranger, token.Header())
	if err != nil {
		return Step{}, err
	}
	return Step{
		OK: answer.status == http.StatusUnauthorized && !strings.Contains(answer.reason, "revoked"), Took: answer.took,
		Detail: fmt.Sprintf("live token, sent by stranger: %d", answer.status),
		More:   []string{answer.reason},
	}, nil
}

// reply is what the orders server answered.
type reply struct {
	status int
	reason string // of a refusal
	took   time.Duration
}

// send is a plain HTTP request with a token and a certificate, and nothing of the SDK in between.
func (t *tour) send(ctx context.Context, who *devmode.Identity, header string) (reply, error) {
	client := t.clientOf(who)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.local.OrdersURL, nil)
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", header)
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return reply{}, err
	}
	return reply{status: resp.StatusCode, reason: refusal(resp.Header.Get("WWW-Authenticate")), took: time.Since(start)}, nil
}

func (t *tour) clientOf(who *devmode.Identity) *http.Client {
	if len(t.clients) == 0 {
		for _, each := range []*devmode.Identity{t.report, t.stranger} {
			t.clients = append(t.clients, &http.Client{Transport: &http.Transport{TLSClientConfig: each.ClientTLS()}, Timeout: 5 * time.Second})
		}
	}
	if who == t.stranger {
		return t.clients[1]
	}
	return t.clients[0]
}

// refusal takes the description out of a challenge (RFC 6750 §3).
func refusal(challenge string) string {
	_, description, ok := strings.Cut(challenge, `error_description="`)
	if !ok {
		return challenge
	}
	description, _, _ = strings.Cut(description, `"`)
	return description
}
