package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

// fakeOperator is an operator listener that answers as a test wants, and the environment that finds it. It is for
// what the real one cannot be made to do.
func fakeOperator(t *testing.T, answer http.HandlerFunc) {
	t.Helper()
	ca, err := devmode.NewCA("example.org", devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "errand-test-") // shorter than t.TempDir: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	api := devmode.NewWorkloadAPI(ca, sockets, time.Hour)
	addr, err := api.Add(spiffeid.RequireFromString("spiffe://example.org/alice"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	starting, started := context.WithTimeout(ctx, 30*time.Second)
	defer started()
	alice, err := devmode.Open(starting, addr)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := alice.WriteFiles(dir); err != nil {
		t.Fatal(err)
	}
	svid, err := ca.Issue(spiffeid.RequireFromString("spiffe://example.org/errand"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(answer)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{{
		Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey,
	}}}
	s.StartTLS()
	t.Cleanup(func() {
		s.Close()
		_ = alice.Close()
		cancel()
		<-done
		os.RemoveAll(sockets)
	})
	t.Setenv("ERRAND_OPERATOR_URL", s.URL)
	t.Setenv("ERRAND_BROKER_ID", "spiffe://example.org/errand")
	t.Setenv("ERRAND_IDENTITY_DIR", dir)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
}

// errand runs a command line.
func errand(args ...string) (code int, stdout, stderr string) {
	var out, talk bytes.Buffer
	code = run(args, &out, &talk)
	return code, out.String(), talk.String()
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", wire.TypeJSON)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // as the broker
	_ = encoder.Encode(value)
}

// TestListPages: a list goes on over pages that are short or empty, up to its limit, and says when there is more.
func TestListPages(t *testing.T) {
	var asked []string
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		q := r.URL.Query()
		from, _ := strconv.Atoi(q.Get("cursor"))
		size, _ := strconv.Atoi(q.Get("page_size"))
		list := wire.GrantList{Items: []wire.GrantItem{}}
		if from%2 == 0 { // every second page is empty
			for i := range min(size, 2) {
				list.Items = append(list.Items, wire.GrantItem{Grant: wire.Grant{ID: fmt.Sprintf("gnt_%d_%d", from, i), Live: true, Scope: "a<b"}})
			}
		}
		if from < 4 {
			list.NextCursor = strconv.Itoa(from + 1)
		}
		writeJSON(w, list)
	})
	code, stdout, stderr := errand("grants", "list", "-o", "name", "--workload", "spiffe://a/*", "--label", "x=1")
	if code != 0 || stdout != "gnt_0_0\ngnt_0_1\ngnt_2_0\ngnt_2_1\ngnt_4_0\ngnt_4_1\n" || stderr != "" {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
	if want := "cursor=4&label=x%3D1&page_size=100&state=live&workload=spiffe%3A%2F%2Fa%2F%2A"; len(asked) != 5 || asked[4] != want {
		t.Errorf("it has asked %q, want the last to be %q", asked, want)
	}
	asked = nil
	code, stdout, stderr = errand("grants", "list", "-o", "json", "--limit", "3", "--state", "any")
	var got page
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil || len(got.Items) != 3 || got.Next != "3" || !strings.Contains(stdout, `"a<b"`) {
		t.Errorf("%d %q %v", code, stdout, err)
	}
	if !strings.Contains(stderr, "there are more grants than these 3: filter them, or have more with --limit") {
		t.Errorf("%q", stderr)
	}
	if want := []string{"page_size=3", "cursor=1&page_size=1", "cursor=2&page_size=1"}; !slices.Equal(asked, want) {
		t.Errorf("it has asked %q", asked)
	}
}

// TestListMistakes of a listener that is not what it should be.
func TestListMistakes(t *testing.T) {
	var answer string
	fakeOperator(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) })
	for text, want := range map[string]string{
		`{"items":[],"next_cursor":"1"}`: "its list goes in circles",
		`{"items":[7]}`:                  "its list is not what this errand knows",
		`[]`:                             "not the broker's listener",
	} {
		answer = text
		if code, stdout, stderr := errand("task", "list"); code != exitUnreachable || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d %q %q", text, code, stdout, stderr)
		}
	}
}

// TestSelectorMistakes are found before anybody is asked.
func TestSelectorMistakes(t *testing.T) {
	for line, want := range map[string]string{
		"revoke":                                     "say what to revoke, with --workload, --owner,",
		"revoke --all --workload spiffe://a/b":       "--all is everything, and goes with no other filter",
		"revoke --workload ":                         "--workload is empty",
		"revoke --workload spiffe://a/b --audience ": "--audience is empty",
		"revoke --ref ":                              "--ref is empty",
		"revoke --label x":                           `--label is "x"; give it as NAME=VALUE`,
		"revoke --label =x":                          `--label is "=x"; give it as NAME=VALUE`,
		"revoke --label x=1 --label x=2":             "--label x has two values",
		"revoke --issued-before yesterday --all":     `--issued-before is "yesterday"; give a time as`,
		"revoke --all --what tokens":                 `--what is "tokens"; it is grants or tasks`,
		"revoke --all --max-affected -1":             "--max-affected is -1",
		"revoke --all --wait 1500ms":                 "--wait is 1.5s; it must be whole seconds",
		"revoke --all --wait 31s":                    "whole seconds, 30s at most",
		"revoke --all":                               "--yes and --reason are missing, and there is no terminal to ask on",
		"revoke --all --reason r":                    "--yes is missing, and there is no terminal to ask on",
		"revoke --all --yes":                         "--reason is missing: say why",
		"revoke --all --curl":                        "--reason is missing: say why",
		"revoke spiffe://a/b":                        "errand revoke takes no argument",
		"grants list --state dead --state alive":     `--state is "alive"; it is one of live, dead or any`,
		"grants list --limit 0":                      "--limit is 0; it must be 1 to 100000",
		"grants list --limit 100001":                 "--limit is 100001",
		"grants list --all":                          "unknown flag: --all",
		"grants show tsk_1":                          "name one grant by its ID, as gnt_",
		"grants watch -o table":                      "stdout is none: use -o ndjson",
		"grants watch -o json":                       `the output "json" is not known`,
		"task tree gnt_1":                            "name one task by its ID",
		"lock add --for 1h":                          "say what to lock, with --workload, --owner, --risk, --audience, --scope; or",
		"lock add --task tsk_1 --for 1h":             "unknown flag: --task",
		"lock add --scope s":                         "--for is missing: say for how long",
		"lock add --scope s --for -1h":               "--for is -1h0m0s; it must be whole seconds",
		"lock add --scope s --for 1h":                "--yes and --reason are missing",
		"lock add --scope s --for 1h --yes":          "--reason is missing: say why",
		"quarantine --for 1h":                        "name one workload by its SPIFFE ID",
		"quarantine  --for 1h":                       "name one workload by its SPIFFE ID",
		"lock remove lck_1":                          "--reason is missing",
		"lock remove lck_1 --reason r":               "--yes is missing, and there is no terminal to ask on",
		"lock show 1":                                "name one lock by its ID, as lck_",
		"revocations show lck_1":                     "name one revocation by its ID, as rev_",
	} {
		if code, stdout, stderr := errand(strings.Split(line, " ")...); code != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("errand %s: %d %q %q", line, code, stdout, stderr)
		}
	}
}

// TestRevokeAsks: what is applied is the plan that was shown, and only when its number was typed.
func TestRevokeAsks(t *testing.T) {
	var bodies []wire.RevocationRequest
	plan := wire.RevocationPlan{Plan: "pln_1", What: wire.WhatGrants, Grants: 1204, Tasks: 37, Entries: 1, Complete: true}
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		var body wire.RevocationRequest
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		bodies = append(bodies, body)
		if body.DryRun {
			plan.Selector = *body.Selector
			writeJSON(w, plan)
			return
		}
		n := 1204
		writeJSON(w, wire.Revocation{ID: "rev_1", What: wire.WhatGrants, Grants: &n, Durable: true})
	})
	for name, test := range map[string]struct {
		typed string
		want  error // nil: none
		code  int
		calls int
	}{
		"all is typed":       {"INC-4411 leaked\nrevoke 1204\n", nil, 0, 2},
		"another number":     {"INC-4411 leaked\nrevoke 1205\n", errNothingDone, exitFailed, 1},
		"only a yes":         {"INC-4411 leaked\nyes\n", errNothingDone, exitFailed, 1},
		"no reason":          {"\n", errNobody, exitUsage, 1},
		"a short one first":  {"leak\nINC-4411 leaked\nrevoke 1204\n", nil, 0, 2},
		"nobody any more":    {"", errNobody, exitUsage, 1},
		"gone in the middle": {"INC-4411 leaked\n", errNobody, exitUsage, 1},
	} {
		bodies = nil
		var out, talk bytes.Buffer
		cmd := newRevoke()
		cmd.SetOut(&out)
		cmd.SetErr(&talk)
		cmd.SetContext(t.Context())
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return nil }
		r := &revoking{command: cmd}
		r.at, r.output, r.filter.Audience = 1, "text", []string{"orders"}
		err := r.resolve()
		if err == nil {
			err = r.discussWith(&prompt{cmd, bufio.NewReader(strings.NewReader(test.typed))})
		}
		if code := exitCodeOf(err); code != test.code || test.want != nil && !errors.Is(err, test.want) || len(bodies) != test.calls {
			t.Errorf("%s: code %d, %v, after %d requests", name, code, err, len(bodies))
		}
		if !strings.Contains(talk.String(), "Would revoke 1,204 grants in 37 tasks") {
			t.Errorf("%s: it says %q", name, talk.String())
		}
		if test.calls == 2 {
			if b := bodies[1]; b.Plan != "pln_1" || b.Selector != nil || b.Reason != "INC-4411 leaked" {
				t.Errorf("%s: it has applied %+v", name, b)
			}
			if !strings.Contains(talk.String(), "errand lock add --audience orders --for 24h") {
				t.Errorf("%s: no word of locks: %q", name, talk.String())
			}
		}
	}
}

// TestWhatIsLeft: an answer that says that something is not done is no success, in any format.
func TestWhatIsLeft(t *testing.T) {
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		done := wire.Revocation{ID: "rev_1", What: wire.WhatGrants, Durable: true, Left: "some of the tasks"}
		if r.URL.Path == wire.PathRevocations {
			writeJSON(w, done)
			return
		}
		var body wire.LockRequest
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || !body.Revoke {
			t.Errorf("%+v, %v", body, err)
		}
		answer := wire.LockResponse{Locks: []wire.OperatorLock{{ID: "lck_1", Subject: "spiffe://example.org/report"}}, Revocation: &done}
		if strings.HasPrefix(body.Reason, "half") {
			answer.Revocation, answer.Left, answer.Unknown = nil, "the tokens that are out", []string{"workload=spiffe://example.org/report"}
		}
		writeJSON(w, answer)
	})
	for _, line := range []string{
		"revoke --audience orders --yes --reason",
		"revoke --audience orders --yes -o json --reason",
		"quarantine spiffe://example.org/report --for 1h --yes --reason",
		"quarantine spiffe://example.org/report --for 1h --yes -o name --reason",
		"lock add --revoke --audience orders --for 1h --yes --reason",
	} {
		code, stdout, stderr := errand(append(strings.Fields(line), "INC-4411: a stolen key")...)
		if code != exitFailed || !strings.Contains(stderr, "rev_1 is not complete; it has left some of the tasks") || !strings.Contains(stdout, "_1") {
			t.Errorf("%s: %d %q %q", line, code, stdout, stderr)
		}
	}
	code, stdout, stderr := errand("quarantine", "spiffe://example.org/report", "--for", "1h", "--yes", "--reason", "half a quarantine")
	if code != exitFailed || !strings.Contains(stdout, "lck_1") || !strings.Contains(stderr, "the inventory does not have workload=spiffe://example.org/report; check the spelling") || !strings.Contains(stderr, "the locks are in force, and this is left: the tokens that are out") {
		t.Errorf("%d %q %q", code, stdout, stderr)
	}
}

// TestWatchConnectsAgain: when the stream breaks off, what has changed meanwhile is told and nothing twice, and a
// refusal that will not pass ends it.
func TestWatchConnectsAgain(t *testing.T) {
	grant := func(id, scope string) string {
		text, _ := json.Marshal(wire.GrantItem{Grant: wire.Grant{ID: id, Scope: scope}})
		return string(text)
	}
	streams := []string{
		"event: added\ndata: " + grant("gnt_a", "1") + "\n\nevent: added\ndata: " + grant("gnt_b", "1") + "\n\nevent: added\ndata: " + grant("gnt_c", "1") + "\n\n" +
			"event: current\ndata: {}\n\nevent: changed\ndata: " + grant("gnt_b", "2") + "\n\nevent: beat\ndata: {}\n\n",
		"event: added\ndata: " + grant("gnt_b", "2") + "\n\nevent: added\ndata: " + grant("gnt_c", "\x1b2") + "\n\nevent: current\ndata: {}\n\n" +
			"event: removed\ndata: {\"id\":\"gnt_c\"}\n\nevent: removed\ndata: {\"id\":\"gnt_z\"}\n\nevent: reset\ndata: {}\n\nevent: added\ndata: " + grant("gnt_y", "1") + "\n\n",
		"event: added\ndata: " + grant("gnt_b", "2") + "\n\nevent: current\ndata: {}\n\n",
	}
	var asked int
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		if asked > len(streams) {
			w.Header().Set("Content-Type", wire.TypeProblem)
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"type":"https://a/problems/role-required","title":"T","status":403}`)
			return
		}
		w.Header().Set("Content-Type", wire.TypeEvents)
		_, _ = io.WriteString(w, streams[asked-1])
	})
	code, stdout, stderr := errand("grants", "watch", "--scope", "x")
	if code != exitDenied || !strings.Contains(stderr, "the broker refused: T") {
		t.Errorf("%d %q", code, stderr)
	}
	var got []string
	for line := range strings.Lines(stdout) {
		var told struct {
			Event string
			Item  struct{ ID, Scope string }
		}
		if err := json.Unmarshal([]byte(line), &told); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got = append(got, strings.TrimSpace(told.Event+" "+told.Item.ID+" "+told.Item.Scope))
	}
	want := []string{"added gnt_a 1", "added gnt_b 1", "added gnt_c 1", "current", "changed gnt_b 2", "changed gnt_c \x1b2", "removed gnt_a", "removed gnt_c"}
	if !slices.Equal(got, want) {
		t.Errorf("it has told\n%q, want\n%q", got, want)
	}
}

// TestWatchIsBounded: more rows than it keeps are too many.
func TestWatchIsBounded(t *testing.T) {
	var text strings.Builder
	fakeOperator(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", wire.TypeEvents)
		_, _ = io.WriteString(w, text.String())
	})
	for i := range maxWatched {
		fmt.Fprintf(&text, "event: added\ndata: {\"id\":\"gnt_%d\"}\n\n", i)
	}
	if code, stdout, stderr := errand("grants", "watch"); code != exitUnreachable || strings.Count(stdout, "\n") != maxWatched {
		t.Errorf("%d %q", code, stderr)
	}
	text.WriteString("event: added\ndata: {\"id\":\"gnt_x\"}\n\n")
	if code, _, stderr := errand("grants", "watch"); code != exitFailed || !strings.Contains(stderr, "there are more than 10000 grants to watch: filter them") {
		t.Errorf("%d %q", code, stderr)
	}
}

// TestDrawnWatch: a drawing has the newest that the screen takes, and nothing in it does anything to the terminal but
// the drawing itself.
func TestDrawnWatch(t *testing.T) {
	var out bytes.Buffer
	cmd := newGrantsWatch()
	cmd.SetOut(&out)
	w := &watching[wire.GrantItem]{listing: grantListing(), since: func(g wire.GrantItem) time.Time { return g.IssuedAt }}
	w.cmd, w.output, w.ready, w.rows = cmd, "table", true, map[string]watched[wire.GrantItem]{}
	w.draw = w.screen()
	begun := time.Now()
	for i := range 100 {
		text, _ := json.Marshal(wire.GrantItem{Grant: wire.Grant{ID: fmt.Sprintf("gnt_%02d", i), Scope: "\x1b[2Jred\u202e", IssuedAt: begun.Add(time.Duration(i) * time.Second)}})
		if err := w.put(text); err != nil {
			t.Fatal(err)
		}
	}
	out.Reset()
	w.draw("connecting again", true)
	text, ok := strings.CutPrefix(out.String(), "\x1b[?7l\x1b[H\x1b[2J")
	text, ok2 := strings.CutSuffix(text, "\x1b[?7h")
	if !ok || !ok2 {
		t.Fatalf("%q", out.String())
	}
	onlyPrints(t, "a drawing", text)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != usualLines-1 || !strings.HasPrefix(lines[0], "100 grants, the newest 21   ") || !strings.HasSuffix(lines[0], "connecting again") ||
		!strings.HasPrefix(lines[2], "gnt_99 ") || !strings.HasPrefix(lines[22], "gnt_79 ") {
		t.Errorf("%d lines:\n%s", len(lines), text)
	}
}

// TestTree: tasks come in any order, and some not at all.
func TestTree(t *testing.T) {
	begun := time.Now()
	task := func(seconds int, path ...string) wire.TaskItem {
		return wire.TaskItem{Task: wire.Task{ID: path[len(path)-1], Path: path, BegunAt: begun.Add(time.Duration(seconds) * time.Second)}}
	}
	items := []wire.TaskItem{
		task(4, "r", "b", "c", "d"), task(2, "r", "b"), task(3, "r", "b", "c"), task(5, "r", "a"), task(6, "r", "b", "e"),
		task(1, "r"), task(7, "r", "lost", "f"), task(0, "r", "b", "g"),
	}
	slices.Reverse(items)
	var got []string
	for _, b := range grow(items) {
		got = append(got, b.lead+b.ID)
	}
	want := []string{"r", "├─ b", "│  ├─ g", "│  ├─ c", "│  │  └─ d", "│  └─ e", "├─ a", "└─ f"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if len(grow(nil)) != 0 {
		t.Error("nothing grows from nothing")
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 1204: "1,204", 100000: "100,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{24 * time.Hour: "24h", 90 * time.Minute: "1h30m", 10 * time.Second: "10s", 10 * time.Minute: "10m", 70 * time.Second: "1m10s", time.Hour + time.Second: "1h0m1s"} {
		if got := short(d); got != want {
			t.Errorf("%s is %s", d, got)
		}
	}
}

// TestPromptIsInterrupted: Ctrl-C at a question is an answer.
func TestPromptIsInterrupted(t *testing.T) {
	var talk bytes.Buffer
	cmd := newRevoke()
	cmd.SetErr(&talk)
	ctx, interrupt := context.WithCancel(t.Context())
	cmd.SetContext(ctx)
	typed, keyboard := io.Pipe()
	defer keyboard.Close() // the reader that is left behind ends
	interrupt()
	p := &prompt{cmd, bufio.NewReader(typed)}
	if _, err := p.ask("Reason: "); !errors.Is(err, errInterrupted) || exitCodeOf(err) != exitInterrupted || talk.String() != "Reason: \n" {
		t.Errorf("%v, %q", err, talk.String())
	}
}

// TestPlansAreSafeForATerminal: whatever others have named things, a plan and a record have the lines that they have,
// and none that does something to a terminal.
func TestPlansAreSafeForATerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := nasty.Draw(t, "text")
		named := []wire.Counted{{Name: text, Grants: 7}}
		var out bytes.Buffer
		writePlan(&out, wire.RevocationPlan{Unknown: []string{text}, Grants: 7, Tasks: 1, Workloads: named, Owners: named, Audiences: named, Sample: []wire.Grant{{ID: "gnt_1", Workload: text, Audience: text, Scope: text}}}, time.Now())
		writeRevocation(plain{&out}, wire.Revocation{ID: "rev_1", What: wire.WhatTasks, Propagation: &wire.Propagation{Confirmed: 1, Pending: []wire.PendingVerifier{{ID: text, Workload: text, Audience: text}}}})
		onlyPrints(t, "a plan", out.String())
		if n := strings.Count(out.String(), "\n"); n != 11 {
			t.Fatalf("%d lines: %q", n, out.String())
		}
	})
}
