package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// Lives of tokens that errand token asks for. Nobody sends heartbeats for their task, so it can live no
// longer than the longest lease.
const (
	tokenLife    = time.Minute
	minTokenLife = 5 * time.Second
	maxTokenLife = 10 * time.Minute
	maxLease     = 10 * time.Minute
)

func newToken() *cobra.Command {
	var t tokenCommand
	t.at = api.Workload
	cmd := &cobra.Command{
		Use:   "token --audience AUDIENCE --scope SCOPE... (--task NAME --purpose WHY | --in TASK)",
		Short: "Get one token, for a script",
		Long: `token gets one token and prints it, and nothing else, to stdout; what it is goes to stderr. It refuses
to put it on a terminal, unless you --print.

With --task and --purpose it begins a task of its own, which nobody has to end: the deadline of the task
is the token's life (--ttl), and it needs no heartbeats. Where the audience allows only a shorter life, the
task has the one that you asked for. To end it, and the token, before that, have the task's end key
written to a file, and give that to errand task end. With --in the token is one more of a task that you
began before, and dies with it.

  token=$(errand token --task nightly --purpose FIN-212 --audience orders --scope orders:read)

A token that is bound to a certificate, as they are unless the audience says otherwise, is good only from
whoever shows that certificate to the server. For a longer job use the SDK, or errand exec: they get new
tokens as long as the work goes on, and none after it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.run(cmd) },
	}
	t.flags(cmd, said)
	f := cmd.Flags()
	taskFlags(cmd, &t.name, &t.purpose)
	f.StringVar(&t.in, "in", "", "a task that has been begun, in place of --task and --purpose")
	f.StringVar(&t.audience, "audience", "", "whom the token is for")
	f.StringArrayVar(&t.scopes, "scope", nil, "what it may be used for; repeat for more (default all of the task's that the audience knows)")
	f.DurationVar(&t.ttl, "ttl", tokenLife, "how long it is to live, 5s to 10m; policy may make it shorter")
	f.BoolVar(&t.print, "print", false, "print the token also to a terminal")
	endKeyFlag(cmd, &t.endKeyFile)
	completeCeiling(cmd)
	return cmd
}

// taskFlags are those of the commands that begin a task.
func taskFlags(cmd *cobra.Command, name, purpose *string) {
	cmd.Flags().StringVar(name, "task", "", "the stable name of the kind of work, as nightly-export")
	cmd.Flags().StringVar(purpose, "purpose", "", "why, for the audit log")
}

func endKeyFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "end-key-file", "", "a new file for the task's end key, which can end it and do nothing else")
}

// tokenCommand is one errand token.
type tokenCommand struct {
	asking
	name, purpose, in, audience string
	scopes                      []string
	ttl                         time.Duration
	print                       bool
	endKeyFile                  string
}

func (t *tokenCommand) check(cmd *cobra.Command) error {
	switch {
	case t.in != "" && (t.name != "" || t.purpose != "" || t.endKeyFile != ""):
		return usage(cmd, "--in names a task that has been begun: --task, --purpose and --end-key-file do not go with it")
	case t.in == "" && (strings.TrimSpace(t.name) == "" || strings.TrimSpace(t.purpose) == ""):
		return usage(cmd, "--task and --purpose are missing: say what the token is for; or name a task that you have begun with --in")
	case t.audience == "":
		return usage(cmd, "--audience is missing: name whom the token is for; errand doctor shows your ceiling")
	case t.ttl < minTokenLife || t.ttl > maxTokenLife || t.ttl%time.Second != 0:
		return usage(cmd, "--ttl is %s; it must be whole seconds, %s to %s", t.ttl, minTokenLife, maxTokenLife)
	case !t.print && !t.curl && isTerminal(cmd.OutOrStdout()):
		return usage(cmd, "stdout is a terminal, where a token stays to be read: pipe it to its user, or give --print")
	}
	return nil
}

func (t *tokenCommand) run(cmd *cobra.Command) error {
	if err := t.check(cmd); err != nil {
		return err
	}
	if t.in != "" {
		return t.further(cmd)
	}
	life := int64(t.ttl / time.Second)
	// The lease is longer, where it can be, so that the task ends by its deadline and not as one whose
	// heartbeats were missed.
	lease := int64(min(t.ttl+minTokenLife, maxLease) / time.Second)
	var begun wire.BeginResponse
	text, err := withEndKey(cmd, &t.asking, t.endKeyFile, api.Request{Method: http.MethodPost, Path: wire.PathTasks, Body: wire.BeginRequest{
		Name: t.name, Purpose: t.purpose, Audiences: []string{t.audience}, Scopes: t.scopes,
		LeaseSeconds: &lease, DeadlineSeconds: &life,
		Tokens: []wire.TokenRequest{{Audience: t.audience, Scopes: t.scopes, TTLSeconds: &life}},
	}}, &begun)
	if err != nil {
		return err
	}
	var raw []json.RawMessage
	if tokens, err := member(text, "tokens"); err != nil || json.Unmarshal(tokens, &raw) != nil || len(raw) != 1 || len(begun.Tokens) != 1 {
		return fmt.Errorf("%w: it has answered with %d tokens in place of one", api.ErrUnreachable, len(begun.Tokens))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "errand: %s ends by itself at %s\n", begun.Task.ID, begun.Task.Deadline.UTC().Format(time.RFC3339))
	return t.hand(cmd, raw[0], begun.Tokens[0])
}

// further gets a token of a task that is there.
func (t *tokenCommand) further(cmd *cobra.Command) error {
	life := int64(t.ttl / time.Second)
	var token wire.TokenResponse
	text, err := t.send(cmd, api.Request{
		Method: http.MethodPost, Path: pathOf(wire.PathTaskTokens, t.in),
		Body: wire.TokenRequest{Audience: t.audience, Scopes: t.scopes, TTLSeconds: &life},
	}, &token)
	if err != nil {
		return err
	}
	return t.hand(cmd, text, token)
}

// hand puts the token on stdout, and on stderr what it is.
func (t *tokenCommand) hand(cmd *cobra.Command, text []byte, token wire.TokenResponse) error {
	bound := "good from anybody who has it"
	if token.Binding != "none" {
		bound = "good only together with this workload's " + token.Binding
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "errand: %s for %s, %s, for %ds, %s\n", token.GrantID, token.Audience, orDash(token.Scope), token.ExpiresIn, bound)
	out := string(audit.Printable(text))
	if t.output == "text" {
		out = token.AccessToken
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(out))
	return err
}

// withEndKey begins a task. The file for its end key is made first: when that cannot be, no task begins.
func withEndKey(cmd *cobra.Command, a *asking, file string, request api.Request, begun *wire.BeginResponse) (text []byte, err error) {
	request.Key = rand.Text()
	if file == "" || a.curl {
		return a.send(cmd, request, begun)
	}
	f, err := newSecret(cmd, file)
	if err != nil {
		return nil, err
	}
	if text, err = a.send(cmd, request, begun); err == nil {
		if _, err = fmt.Fprintln(f, begun.EndKey); err != nil {
			err = fmt.Errorf("%s has begun, and its end key could not be written: %w; end it with  errand task end %s", begun.Task.ID, err, begun.Task.ID)
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(file))
	}
	return text, err
}

// isTerminal reports whether what is written there is shown to somebody.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	stat, err := f.Stat()
	null, nullErr := os.Stat(os.DevNull)
	return err == nil && stat.Mode()&os.ModeCharDevice != 0 && (nullErr != nil || !os.SameFile(stat, null))
}

// member is one member of an answer, as it came.
func member(text []byte, name string) ([]byte, error) {
	var members map[string]json.RawMessage
	err := json.Unmarshal(text, &members)
	return members[name], err
}
