package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// Bounds of errand doctor.
const (
	checkTimeout = 5 * time.Second         // of one check
	maxSkew      = 5 * time.Second         // between any two machines
	warnSkew     = maxSkew / 2             // set the clock before it is too late
	warnFeed     = 2 * time.Second         // a replica beats each second
	maxFeed      = 10 * time.Second        // what a verifier bears
	stageTimeout = 1500 * time.Millisecond // of a look-up, a connection and a handshake: three fit into a check
)

// Results of a check.
const (
	fine    = "ok"
	warning = "warn"
	failure = "fail"
	skipped = "skip" // something before it has failed
)

// check is one line of errand doctor.
type check struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"`

	code int // the exit code, if it has failed
}

func newDoctor() *cobra.Command {
	var output, at string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps this workload from getting tokens",
		Long: `doctor looks, as the workload that the environment makes you, at everything between you and a token: the
environment, your identity, the way to the broker and whether it is the right one, the clocks, whether it
can issue, your registration, and the feed if you serve an audience. Each line is ok, warn or fail, with
how to mend it. A check takes five seconds at most, and the later ones are made although an earlier one has
failed, where they can be. Nothing is changed.

The exit code is 0 if nothing has failed, 4 if there is no identity, 8 if there is no answer from the
broker that was named, and 1 if something else has failed.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := asking{at: api.Workload, url: at}
			d := doctor{env: flags.environment(), tell: func(check) {}}
			if output == "table" {
				d.tell = func(c check) { printCheck(cmd.OutOrStdout(), c) }
			}
			d.examine(cmd.Context())
			if err := d.show(cmd.OutOrStdout(), output); err != nil {
				return err
			}
			return d.err()
		},
	}
	outputFlag(cmd, &output, rowFormats)
	brokerURLFlag(cmd, &at)
	return cmd
}

// doctor makes the checks, one after the other.
type doctor struct {
	env    api.Environment
	tell   func(check)
	checks []check

	who *api.Identity // nil: there is none
}

var checkTable = table[check]{columns: []column[check]{
	{head: "RESULT", cell: func(c check) string { return c.Result }},
	{head: "CHECK", cell: func(c check) string { return c.Check }},
	{head: "DETAIL", cell: func(c check) string { return c.Detail }},
	{head: "MEND", cell: func(c check) string { return c.Mend }},
}}

func (d *doctor) show(out io.Writer, output string) error {
	if output == "table" {
		return nil // it was shown as it came
	}
	text, err := json.Marshal(map[string]any{"ok": d.err() == nil, "checks": d.checks})
	if err != nil {
		return err
	}
	return checkTable.show(out, output, text, d.checks...)
}

func printCheck(out io.Writer, c check) {
	fmt.Fprintf(out, "%-5s %-12s  %s\n", c.Result, c.Check, oneCell(c.Detail))
	if c.Mend != "" {
		fmt.Fprintf(out, "%-18s  mend it: %s\n", "", oneCell(c.Mend))
	}
}

// err is nil if nothing has failed.
func (d *doctor) err() error {
	code := exitOK
	for _, c := range d.checks {
		if c.Result != failure {
			continue
		}
		// Without an identity there is no answer, and without an answer nothing else.
		switch {
		case c.code == exitNoIdentity, code == exitOK, c.code == exitUnreachable && code == exitFailed:
			code = c.code
		}
	}
	if code == exitOK {
		return nil
	}
	return codedError{code, errFailed}
}

func (d *doctor) note(c check) {
	d.checks = append(d.checks, c)
	d.tell(c)
}

func (d *doctor) ok(name, format string, args ...any) {
	d.note(check{Check: name, Result: fine, Detail: fmt.Sprintf(format, args...)})
}

func (d *doctor) warn(name, detail, mend string) {
	d.note(check{Check: name, Result: warning, Detail: detail, Mend: mend})
}

func (d *doctor) fail(code int, name, detail, mend string) {
	d.note(check{Check: name, Result: failure, Detail: detail, Mend: mend, code: code})
}

func (d *doctor) skip(names []string, why string) {
	for _, name := range names {
		d.note(check{Check: name, Result: skipped, Detail: why})
	}
}

func (d *doctor) examine(ctx context.Context) {
	urls := d.environment()
	d.identity(ctx)
	if d.who != nil {
		defer func() { _ = d.who.Release() }()
	}
	for _, at := range urls {
		d.broker(ctx, at)
	}
	d.answers(ctx)
}

// environment checks the variables, and returns the broker's URLs.
func (d *doctor) environment() []string {
	urls, urlErr := d.env.BrokerURLs()
	id, idErr := d.env.BrokerID()
	if err := errors.Join(urlErr, idErr); err != nil {
		for _, err := range []error{urlErr, idErr} {
			if err != nil {
				what, mend, _ := strings.Cut(strings.TrimPrefix(err.Error(), api.ErrConfig.Error()+": "), "; ")
				d.fail(exitFailed, "environment", what, mend)
			}
		}
		return urls
	}
	d.ok("environment", "the broker is %s at %s", id, strings.Join(urls, " and "))
	return urls
}

func (d *doctor) identity(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	who, err := d.env.Identity(ctx)
	if err != nil {
		what := strings.TrimPrefix(err.Error(), api.ErrNoIdentity.Error()+": ")
		d.fail(exitNoIdentity, "identity", what, "start the SPIFFE agent, register this workload with it, and set SPIFFE_ENDPOINT_SOCKET; or set ERRAND_IDENTITY_DIR to a folder with its files. For a try without an agent,  errand dev  has one")
		return
	}
	d.who = who
	id, leaf, err := who.Own()
	if err != nil {
		d.fail(exitNoIdentity, "identity", err.Error(), "see that its agent is running")
		return
	}
	left, life := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	detail := fmt.Sprintf("%s, from %s, expires in %s", id, who.From, span(left))
	if left < life/8 {
		d.warn("identity", detail, "agents renew an SVID at half of its life, and this one is nearly over: see that the agent is well")
		return
	}
	d.ok("identity", "%s", detail)
}

// broker looks at one replica from outside: its name, its port, its certificate.
func (d *doctor) broker(ctx context.Context, at string) {
	u, err := url.Parse(at)
	if err != nil {
		return // the environment was checked
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "443"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	looking, done := context.WithTimeout(ctx, stageTimeout)
	addrs, err := net.DefaultResolver.LookupHost(looking, host)
	done()
	if err != nil {
		d.fail(exitUnreachable, "broker", at+": its name is not found: "+err.Error(), "check the host in ERRAND_BROKER_URL, and this machine's DNS")
		return
	}
	conn, err := (&net.Dialer{Timeout: stageTimeout}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		d.fail(exitUnreachable, "broker", fmt.Sprintf("%s: no connection to %s: %v", at, strings.Join(addrs, " "), err), "check that the broker runs, the port in ERRAND_BROKER_URL, and firewalls in between")
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(stageTimeout)) // a connection that has ended says so below
	d.presented(ctx, at, conn)
}

// presented looks at who answers a TLS handshake. Whom to trust is judged afterwards, so that it can be said who it was.
func (d *doctor) presented(ctx context.Context, at string, conn net.Conn) {
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}} // nothing is sent to whoever it is
	tlsConn := tls.Client(conn, config)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		d.fail(exitUnreachable, "broker", at+": it does not speak TLS 1.3: "+err.Error(), "check that the port in ERRAND_BROKER_URL is that of the workload listener, and that a balancer in between passes TCP on")
		return
	}
	state := tlsConn.ConnectionState()
	presented := "a certificate without a SPIFFE ID"
	if leaf := state.PeerCertificates[0]; len(leaf.URIs) == 1 {
		presented = leaf.URIs[0].String()
	}
	id, err := d.env.BrokerID()
	switch {
	case err != nil:
		d.warn("broker", at+": it presents "+presented, "if that is your broker, set ERRAND_BROKER_ID to it")
		return
	case presented != id.String():
		d.fail(exitUnreachable, "broker", fmt.Sprintf("%s: it presents %s, and not %s", at, presented, id), "correct the URL; or, if what it presents is your broker, set ERRAND_BROKER_ID to that")
		return
	case d.who == nil:
		d.warn("broker", at+": it presents "+presented+"; whether that is true cannot be checked", "an identity comes with the trust bundle to check it by")
		return
	}
	trust, err := verifyspiffe.TLS(d.who, id.String())
	if err == nil {
		err = trust.VerifyConnection(state)
	}
	if err != nil {
		d.fail(exitUnreachable, "broker", fmt.Sprintf("%s: it presents %s, which your trust bundle does not confirm: %v", at, presented, err), "see that your agent has the trust bundle of the broker's trust domain: if that is another one, federate with it. If these are files of an errand dev, they are of one before this: write them again with  errand dev svid")
		return
	}
	d.ok("broker", "%s: TLS 1.3, %s", at, presented)
}

// answers asks the broker, and looks at what it says.
func (d *doctor) answers(ctx context.Context) {
	rest := []string{"clock", "store", "registration", "feed"}
	if d.who == nil {
		d.skip(rest, "it takes an identity to ask the broker")
		return
	}
	c, err := api.Open(ctx, d.env, api.Workload)
	if err != nil {
		d.skip(rest, "the broker cannot be asked")
		return
	}
	defer func() { _ = c.Close() }()
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	sent := time.Now()
	who, err := c.Whoami(asking)
	took := time.Since(sent)
	var refused *api.Refusal
	switch {
	case errors.As(err, &refused):
		d.refused(refused, rest)
		return
	case err != nil:
		d.fail(exitUnreachable, "answer", err.Error(), "see the lines above; if the broker is well, its log says why it hangs up")
		d.skip(rest, "the broker does not answer")
		return
	}
	d.clock(who.Replica, sent, took)
	if who.Replica.Ready {
		d.ok("store", "ready: errand %s issues tokens", orDash(who.Replica.Version))
	} else {
		d.fail(exitFailed, "store", who.Replica.Reason, "nothing is issued until that is over: tell the operators of the broker")
	}
	d.registration(who)
	d.feed(ctx, c, who)
}

// refused is a broker that does not say more.
func (d *doctor) refused(r *api.Refusal, rest []string) {
	name, mend := "answer", "see "+r.Problem.Type
	code := exitFailed
	switch r.Name() {
	case wire.ProblemUnregistered:
		name, mend = "registration", "have the owner of the inventory add this SPIFFE ID, with an owner, a purpose and a ceiling; an operator needs none of that, nor this check"
	case wire.ProblemNotReady, wire.ProblemStoreUnavailable:
		name, mend, code = "store", "the broker starts, or has lost its store: try again, and tell its operators if it lasts", exitUnreachable
	case wire.ProblemUnauthenticated:
		name, mend, code = "answer", "the broker does not accept this SVID: it must be of a trust domain that the broker knows, and not expired", exitNoIdentity
	}
	d.fail(code, name, r.Problem.Title+": "+r.Problem.Detail, mend)
	d.skip(slices.DeleteFunc(rest, func(n string) bool { return n == name }), "the broker does not say")
}

// clock compares with the middle of the request, and gives the clocks the benefit of its length.
func (d *doctor) clock(r wire.Replica, sent time.Time, took time.Duration) {
	off := sent.Add(took / 2).Sub(r.Time).Round(time.Millisecond)
	sure := max(0, off.Abs()-took/2)
	word := "ahead of"
	if off < 0 {
		word = "behind"
	}
	detail := fmt.Sprintf("this machine is %s %s the broker, give or take %s", off.Abs(), word, (took / 2).Round(time.Millisecond))
	mend := "set this machine's clock by NTP; tokens are judged with " + maxSkew.String() + " of leeway"
	switch {
	case sure > maxSkew:
		d.fail(exitFailed, "clock", detail, mend)
	case sure > warnSkew:
		d.warn("clock", detail, mend)
	default:
		d.ok("clock", "%s", detail)
	}
}

func (d *doctor) registration(who wire.Whoami) {
	for _, lock := range who.Locks {
		d.fail(exitFailed, "registration", fmt.Sprintf("locked by %s until %s: %s", lock.ID, lock.ExpiresAt.UTC().Format(time.RFC3339), lock.Reason), "ask the operators of the broker; trying again does not help before then")
	}
	if who.Owner == "" {
		is := "a server of " + strings.Join(who.Serves, " ")
		if who.Source != "" {
			is = "the source " + who.Source + ", which ends tasks by their refs"
		}
		d.ok("registration", "none as a workload, so it begins no tasks; it is %s", is)
		return
	}
	var ceiling []string
	for _, audience := range slices.Sorted(maps.Keys(who.Ceiling)) {
		ceiling = append(ceiling, audience+": "+strings.Join(who.Ceiling[audience], " "))
	}
	detail := fmt.Sprintf("owner %s, may ask for %s", who.Owner, strings.Join(ceiling, "; "))
	if len(ceiling) == 0 {
		d.warn("registration", "owner "+who.Owner+", and may ask for nothing: the ceiling is empty", "have "+who.Owner+" add audiences and scopes to the ceiling in the inventory")
		return
	}
	d.ok("registration", "%s", detail)
}

func (d *doctor) feed(ctx context.Context, c *api.Client, who wire.Whoami) {
	if len(who.Serves) == 0 {
		d.ok("feed", "not a server of any audience, so it needs none")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var p wire.FeedPosition
	nonce := rand.Text()
	_, err := c.Send(ctx, api.Request{Method: http.MethodGet, Path: wire.PathFeedPosition + "?nonce=" + nonce}, &p)
	age := time.Duration(p.AgeMS) * time.Millisecond
	const mend = "the broker has not heard from its store for too long: tell its operators; verifiers answer 503 meanwhile"
	detail := fmt.Sprintf("server of %s; the broker's position is %s old", strings.Join(who.Serves, " "), age)
	switch {
	case err != nil:
		d.fail(exitFailed, "feed", err.Error(), mend)
	case p.Nonce != nonce || age > maxFeed:
		d.fail(exitFailed, "feed", detail, mend)
	case age > warnFeed:
		d.warn("feed", detail, mend)
	default:
		d.ok("feed", "%s", detail)
	}
}
