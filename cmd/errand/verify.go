package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

const (
	verifyTimeout = 15 * time.Second // for all that is fetched
	maxFile       = 1 << 20          // bytes of a certificate or a key set
)

// Verdicts of errand verify.
const (
	accepted   = "accepted"
	refused    = "refused"
	incomplete = "incomplete" // nothing refuses it, and not everything was checked
)

// Bindings that a resource server may be configured with.
var bindings = map[string]verify.Binding{"certificate": verify.ByCertificate, "identity": verify.ByIdentity, "none": verify.Unbound}

func newVerify() *cobra.Command {
	var v verifyCommand
	cmd := &cobra.Command{
		Use:   "verify [TOKEN|-] --audience AUDIENCE",
		Short: "Say why a token would be accepted or refused, here and now",
		Long: `verify makes every check that a resource server makes, in its order, and says what each finds, also
after one has refused. The token comes on stdin. It can be an argument, where other users of the machine can
see it. It is never printed; what it says is.

  errand verify --audience orders --scope orders:read --cert svid.pem < token

Whether a token was revoked, or its task has ended, only the feed knows, and only a server of the audience
may read that: be one of them, by SPIFFE_ENDPOINT_SOCKET or ERRAND_IDENTITY_DIR. As somebody else you get
the rest, and the verdict is at best "incomplete". --cert stands for the caller who presents the token;
without it the binding is not checked. ERRAND_ISSUER and ERRAND_BROKER_ID say which broker to believe. With
--offline nobody is asked, and no identity is needed: --keys is what the issuer had at
/.well-known/jwks.json.

The exit code is 0 only if all was checked and a server would accept the token now. It is 9 if it would be
refused, or the verdict is incomplete; 2 for a command line or an environment that makes no sense, 4 for no
identity, and 8 if the issuer's keys cannot be had.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, "one token at a time, and there are %d arguments", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd, args) },
	}
	outputFlag(cmd, &v.output, rowFormats)
	f := cmd.Flags()
	f.StringVar(&v.audience, "audience", "", "the audience of the resource server")
	f.StringArrayVar(&v.scopes, "scope", nil, "a scope that the server asks for; repeat for more")
	f.StringVar(&v.cert, "cert", "", "a PEM file with the certificate of whoever presents the token")
	f.StringVar(&v.binding, "binding", "certificate", "what the server wants a token to be bound to: certificate, identity or none")
	f.StringVar(&v.issuer, "issuer", "", "the issuer's URL (default "+api.EnvIssuer+")")
	f.BoolVar(&v.offline, "offline", false, "ask nobody; needs --keys")
	f.StringVar(&v.keys, "keys", "", "a file with the issuer's JWK Set, for --offline")
	complete(cmd, "audience", func(_ *cobra.Command, who wire.Whoami) []string { return who.Serves })
	_ = cmd.RegisterFlagCompletionFunc("binding", cobra.FixedCompletions([]string{"certificate", "identity", "none"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

// verifyCommand is one errand verify.
type verifyCommand struct {
	audience, cert, binding, issuer, keys, output string
	scopes                                        []string
	offline                                       bool
}

func (v *verifyCommand) run(cmd *cobra.Command, args []string) error {
	config, q, err := v.question(cmd)
	if err != nil {
		return err
	}
	if q.Token, err = readToken(cmd, args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), verifyTimeout)
	defer cancel()
	if !v.offline {
		e := v.environment()
		id, err := e.BrokerID()
		if err != nil {
			return inUsage(cmd, err)
		}
		who, err := e.Identity(ctx)
		if err != nil {
			return inUsage(cmd, err)
		}
		defer func() { _ = who.Release() }()
		if config.TLS, err = verifyspiffe.TLS(who, id.String()); err != nil {
			return err
		}
	}
	found, err := verify.Explain(ctx, config, q)
	if found == nil {
		return usage(cmd, "%w", err)
	}
	shown := v.show(cmd, found)
	if err != nil {
		return codedError{exitUnreachable, err}
	}
	return shown
}

func (v *verifyCommand) environment() api.Environment {
	return api.Environment{Getenv: os.Getenv, Flags: map[string]string{api.EnvIssuer: v.issuer}}
}

// question is all but the token and the way to the broker.
func (v *verifyCommand) question(cmd *cobra.Command) (config verify.Config, q verify.Case, err error) {
	binding, ok := bindings[v.binding]
	switch {
	case v.audience == "":
		return config, q, usage(cmd, "--audience is missing: name the audience of the server that would get the token")
	case !ok:
		return config, q, usage(cmd, "--binding is %q; it must be certificate, identity or none", v.binding)
	case v.offline != (v.keys != ""):
		return config, q, usage(cmd, "--offline and --keys go together: without asking the issuer, its keys must be in a file")
	}
	issuer, err := v.environment().Issuer()
	if err != nil {
		return config, q, inUsage(cmd, err)
	}
	config = verify.Config{Issuer: issuer, Audience: v.audience, Binding: binding, Logger: slog.New(slog.DiscardHandler)}
	for _, scope := range v.scopes {
		if scope == "" || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return config, q, usage(cmd, "--scope is %q, which no token can have", scope)
		}
	}
	q.Requirements = []verify.Requirement{verify.Scope(v.scopes...)}
	if v.cert != "" {
		if q.Peer, err = readPeer(v.cert); err != nil {
			return config, q, usage(cmd, "--cert: %w", err)
		}
	}
	if v.keys != "" {
		if q.Keys, err = api.ReadFile(v.keys, maxFile); err != nil {
			return config, q, usage(cmd, "--keys: %w", err)
		}
	}
	return config, q, nil
}

// readPeer makes the holder of a certificate the one who presents the token.
func readPeer(file string) (*verify.Peer, error) {
	text, err := api.ReadFile(file, maxFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s does not begin with a certificate in PEM", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &verify.Peer{Certificate: cert, Verified: true}, nil
}

// readToken reads it from stdin, unless it is an argument.
func readToken(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 1 && args[0] != "-" {
		fmt.Fprintln(cmd.ErrOrStderr(), "errand: a token on a command line can be seen by every user of this machine: give it on stdin")
		return trimToken(args[0]), nil
	}
	if isTerminal(cmd.InOrStdin()) {
		fmt.Fprintln(cmd.ErrOrStderr(), "errand: paste the token, and end with Ctrl-D")
	}
	const most = wire.MaxTokenBytes + 64 // for "Authorization: Bearer " and the end of the line
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), most+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("the token could not be read from stdin: %w", err)
	case len(text) > most:
		return "", usage(cmd, "stdin has more than a token's %d bytes", wire.MaxTokenBytes)
	case len(strings.TrimSpace(string(text))) == 0:
		return "", usage(cmd, "there is no token on stdin")
	}
	return trimToken(string(text)), nil
}

// trimToken takes what is around a token in a header.
func trimToken(text string) string {
	text = strings.TrimSpace(text)
	for _, before := range []string{"Authorization:", "Bearer "} {
		if len(text) >= len(before) && strings.EqualFold(text[:len(before)], before) {
			text = strings.TrimSpace(text[len(before):])
		}
	}
	return text
}

// verdict is the answer in JSON.
type verdict struct {
	Verdict string    `json:"verdict"`
	Reason  string    `json:"reason,omitempty"`
	Signed  bool      `json:"signed"` // false: the claims are hearsay
	Claims  *claimed  `json:"claims,omitempty"`
	Checks  []finding `json:"checks"`
}

// finding is one step, as it is shown.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, refused or open
	Detail string `json:"detail"`
}

// claimed is what the token says.
type claimed struct {
	Issuer   string    `json:"iss"`
	Grant    string    `json:"jti"`
	Workload string    `json:"sub"`
	Client   string    `json:"client_id"`
	Actors   []string  `json:"actors,omitempty"` // who acts for sub, nearest first
	Audience string    `json:"aud"`
	Scope    string    `json:"scope"`
	Task     string    `json:"task"`
	Path     []string  `json:"path"`
	Name     string    `json:"name"`
	Issued   time.Time `json:"issued_at"`
	Expires  time.Time `json:"expires_at"`
}

var findings = table[finding]{
	columns: []column[finding]{
		{head: "CHECK", cell: func(f finding) string { return f.Check }},
		{head: "RESULT", cell: func(f finding) string { return f.Result }},
		{head: "DETAIL", cell: func(f finding) string { return f.Detail }},
	},
}

// judge turns an explanation into what is shown.
func judge(e *verify.Explanation) verdict {
	v := verdict{Verdict: incomplete, Signed: e.Signed}
	switch err := e.Err(); {
	case err != nil:
		v.Verdict, v.Reason = refused, err.Error()
	case e.Accepted():
		v.Verdict = accepted
	}
	for _, s := range e.Steps {
		f := finding{Check: s.Name, Result: "ok", Detail: s.Detail}
		switch {
		case s.Err != nil:
			f.Result, f.Detail = refused, s.Err.Error()+"; "+s.Detail
		case s.Open:
			f.Result = "open"
			if s.Name == "binding" {
				f.Detail += ": give --cert"
			}
		}
		v.Checks = append(v.Checks, f)
	}
	if g := e.Grant; g != nil {
		v.Claims = &claimed{
			Issuer: e.Issuer, Grant: g.ID, Workload: g.Workload, Client: g.Client, Actors: g.Actors, Audience: g.Audience, Scope: strings.Join(g.Scopes, " "),
			Task: g.Task.ID, Path: g.Task.Path, Name: g.Task.Name, Issued: g.Issued, Expires: g.Expires,
		}
	}
	return v
}

// show prints the verdict, and returns errFailed with its exit code unless the token is accepted.
func (v *verifyCommand) show(cmd *cobra.Command, e *verify.Explanation) error {
	found := judge(e)
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if err := findings.show(out, v.output, text, found.Checks...); err != nil {
		return err
	}
	if v.output == "table" || v.output == "wide" {
		printVerdict(out, found)
	}
	if found.Verdict != accepted {
		return codedError{exitRefused, errFailed}
	}
	return nil
}

func printVerdict(out io.Writer, v verdict) {
	if c := v.Claims; c != nil {
		hearsay := ""
		if !v.Signed {
			hearsay = " (it says so itself; its signature is not known to be good)"
		}
		workload := c.Workload
		if len(c.Actors) > 0 {
			workload = strings.Join(c.Actors, " for ") + " for " + c.Workload
		}
		for _, line := range [][2]string{
			{"grant", c.Grant + hearsay}, {"task", c.Task + " " + c.Name}, {"workload", workload}, {"scopes", c.Scope}, {"expires", c.Expires.Format(time.RFC3339)},
		} {
			fmt.Fprintf(out, "\n%-12s  %s", line[0], oneCell(line[1]))
		}
		fmt.Fprintln(out)
	}
	switch v.Verdict {
	case accepted:
		fmt.Fprintln(out, "\naccepted: a server of this audience would take it now")
	case refused:
		fmt.Fprintf(out, "\nrefused: %s\n", oneCell(v.Reason))
	default:
		fmt.Fprintln(out, "\nincomplete: nothing refuses it, and what is open was not checked")
	}
}
