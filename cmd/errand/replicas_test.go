package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
)

// example is deploy/two-replicas, run as its README says, on free ports.
type example struct {
	t     *testing.T
	state string
	at    map[string]string
	env   []string
	cmd   *exec.Cmd
	leaf  *x509.Certificate // of report
	tls   *tls.Config       // report's
}

const exampleDir = root + "/deploy/two-replicas"

// newExample starts nothing yet.
func newExample(t *testing.T) *example {
	t.Helper()
	errand, err := exec.LookPath("errand") // this test's own program
	if err != nil {
		t.Fatal(err)
	}
	e := &example{t: t, at: map[string]string{}}
	if e.state, err = os.MkdirTemp("", "errand-two-"); err != nil { // a socket's path is bounded
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(e.state) })
	e.env = append(os.Environ(), "ERRAND="+errand, "STATE="+e.state)
	for _, name := range []string{"WORKLOAD", "PUBLIC", "A_WORKLOAD", "A_PUBLIC", "A_OPERATOR", "B_WORKLOAD", "B_PUBLIC", "B_OPERATOR", "A_OPS_PORT", "B_OPS_PORT", "REDIS_PORT"} {
		port := strconv.Itoa(redistest.FreePort(t))
		e.at[name] = "127.0.0.1:" + port
		if strings.HasSuffix(name, "_PORT") {
			e.env = append(e.env, name+"="+port)
		} else {
			e.env = append(e.env, name+"=127.0.0.1:"+port)
		}
	}
	return e
}

func startExample(t *testing.T) *example {
	t.Helper()
	e := newExample(t)
	e.cmd = exec.Command("sh", "run")
	e.cmd.Dir, e.cmd.Env, e.cmd.Stderr = exampleDir, e.env, os.Stderr
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.stop(out) })
	e.awaitReady(out)
	e.identify()
	return e
}

func (e *example) awaitReady(out io.Reader) {
	e.t.Helper()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "Two replicas are ready") {
			return
		}
	}
	e.t.Fatal("the example does not come up")
}

// fails wants that the example does not come up now, says why and what to do, and leaves nothing.
func (e *example) fails(says ...string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "run")
	cmd.Dir, cmd.Env = exampleDir, e.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	for _, want := range append(says, "run: ") {
		if !strings.Contains(string(out), want) {
			e.t.Errorf("it does not say %q", want)
		}
	}
	if err == nil || ctx.Err() != nil {
		e.t.Errorf("it came up, or did not end by itself: %v", err)
	}
	if e.t.Failed() {
		e.t.Fatalf("run says:\n%s", out)
	}
}

// TestTwoReplicasOnATakenPort: what somebody else answers, who has the port, does not count.
func TestTwoReplicasOnATakenPort(t *testing.T) {
	e := newExample(t)
	taken, err := net.Listen("tcp", e.at["A_OPS_PORT"])
	if err != nil {
		t.Fatal(err)
	}
	others := &httptest.Server{Listener: taken, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}}
	others.Start()
	defer others.Close()
	e.fails("replica a has ended", "in use", "the head of run")
}

// TestTwoReplicasOnce: a second run with the same state is refused before it touches anything.
func TestTwoReplicasOnce(t *testing.T) {
	e := startExample(t)
	before := e.files()
	e.fails(e.state+" is in use", "Ctrl-C", "STATE=")
	for name, text := range e.files() {
		if !strings.HasPrefix(text, before[name]) { // logs grow
			t.Errorf("%s was changed", name)
		}
	}
	if !isReady(e.at["A_OPS_PORT"]) || !isReady(e.at["B_OPS_PORT"]) {
		t.Error("a replica is not ready any more")
	}
}

// files are the logs and the processes' IDs.
func (e *example) files() map[string]string {
	e.t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.log", "*.pid"} {
		names, err := filepath.Glob(filepath.Join(e.state, pattern))
		if err != nil || len(names) < 5 {
			e.t.Fatal(names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				e.t.Fatal(err)
			}
			out[name] = string(text)
		}
	}
	return out
}

// stop presses Ctrl-C, and nothing must be left.
func (e *example) stop(out io.Reader) {
	_ = e.cmd.Process.Signal(os.Interrupt)
	_, _ = io.Copy(io.Discard, out) // everything that was started has its other end
	if err := e.cmd.Wait(); err != nil {
		e.t.Errorf("run: %v", err)
	}
	if isReady(e.at["B_OPS_PORT"]) {
		e.t.Error("a replica is still there")
	}
}

func (e *example) socket(name string) string {
	return "unix://" + filepath.Join(e.state, "ids", name+".sock")
}

func (e *example) open(name string) *devmode.Identity {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 10*time.Second)
	defer cancel()
	who, err := devmode.Open(ctx, e.socket(name))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { who.Close() })
	return who
}

func (e *example) identify() {
	e.t.Helper()
	report := e.open("report")
	svid, err := report.Source().GetX509SVID()
	if err != nil {
		e.t.Fatal(err)
	}
	e.leaf, e.tls = svid.Certificates[0], report.ClientTLS()
}

// verifier is a resource server's, behind the balancer.
func (e *example) verifier() *verify.Verifier {
	e.t.Helper()
	toBroker, err := verifyspiffe.TLS(e.open("orders").Source(), "spiffe://dev.errand/errand")
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), 10*time.Second)
	defer cancel()
	v, err := verify.New(ctx, verify.Config{Issuer: "https://" + e.at["PUBLIC"], Audience: "orders", TLS: toBroker})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { v.Close() })
	return v
}

// workload is report, at one address.
type workload struct {
	base   string
	http   *http.Client
	endKey string // for the public listener, which knows nobody
}

func (e *example) workload(at string) workload {
	transport := &http.Transport{TLSClientConfig: e.tls.Clone()}
	e.t.Cleanup(transport.CloseIdleConnections)
	return workload{base: "https://" + e.at[at], http: &http.Client{Transport: transport, Timeout: 5 * time.Second}}
}

func (w workload) call(method, path, body string, into any) (int, error) {
	req, err := http.NewRequest(method, w.base+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", wire.TypeJSON)
	if w.endKey != "" {
		req.Header.Set("Authorization", "EndKey "+w.endKey)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode > 299 {
		return resp.StatusCode, fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return resp.StatusCode, json.Unmarshal(text, into)
}

func (w workload) begin() (b wire.BeginResponse, err error) {
	_, err = w.call("POST", wire.PathTasks, `{"name":"monthly-export","purpose":"try two replicas","lease_seconds":600,"tokens":[{"audience":"orders"}]}`, &b)
	return b, err
}

func (w workload) end(b wire.BeginResponse) (int, error) {
	return w.call("POST", wire.PathTasks+"/"+b.Task.ID+"/end", fmt.Sprintf(`{"outcome":"completed","end_key":%q}`, b.EndKey), &wire.Receipt{})
}

func (w workload) live(grant string) (bool, error) {
	var g wire.Grant
	_, err := w.call("GET", "/v1/grants/"+grant, "", &g)
	return g.Live, err
}

// soon waits for something that must happen soon.
func soon(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, d)
		}
	}
}

// TestTwoReplicas runs the example of deploy: a token from one replica is ended at the other, and
// refused by verifiers of both; then one replica is killed, no end that was answered is lost, and every end that
// there was is in the audit log of one of them.
func TestTwoReplicas(t *testing.T) {
	e := startExample(t)
	verifiers := []*verify.Verifier{e.verifier(), e.verifier()} // the balancer gives each another replica
	a, b := e.workload("A_WORKLOAD"), e.workload("B_WORKLOAD")
	begun, err := a.begin()
	if err != nil {
		t.Fatal(err)
	}
	token, peer := begun.Tokens[0].AccessToken, &verify.Peer{Certificate: e.leaf}
	for _, v := range verifiers {
		if _, err := v.Verify(t.Context(), token, peer, verify.Scope("orders:read")); err != nil {
			t.Fatalf("a live token: %v", err)
		}
	}
	if status, err := b.end(begun); err != nil || status != http.StatusOK {
		t.Fatalf("end: %d, %v", status, err)
	}
	for _, v := range verifiers {
		soon(t, 2*time.Second, "the token is refused", func() bool {
			_, err := v.Verify(t.Context(), token, peer)
			return errors.Is(err, verify.ErrRevoked)
		})
	}
	if ka, kb := e.keys("A_OPERATOR"), e.keys("B_OPERATOR"); ka != kb || !strings.Contains(ka, "active") {
		t.Errorf("the replicas have other keys:\n%s\n%s", ka, kb)
	}
	e.kill(verifiers)
}

// TestP10_TwoReplicasWithoutRedis: no replica is ready while Redis is away, and the balancer asks them all the same:
// nothing is issued, ends are taken, and keys are served, to clients that connect now. All of it heals by itself.
func TestP10_TwoReplicasWithoutRedis(t *testing.T) {
	e := startExample(t)
	var ending [2]wire.BeginResponse
	for i := range ending {
		ending[i] = e.workload("WORKLOAD").mustBegin(t, 600)
	}
	e.signal("redis", syscall.SIGSTOP)
	soon(t, 30*time.Second, "the balancer takes both replicas for down, at both listeners", func() bool {
		log, err := os.ReadFile(filepath.Join(e.state, "balancer.log"))
		return err == nil && strings.Count(string(log), " is DOWN") == 4
	})
	asked := time.Now()
	if status, err := e.workload("WORKLOAD").call("POST", wire.PathTasks, `{"name":"monthly-export","purpose":"try an outage"}`, nil); status != http.StatusServiceUnavailable {
		t.Errorf("begin: %d, %v", status, err)
	}
	t.Logf("begin was refused after %s", time.Since(asked))
	if status, err := e.workload("WORKLOAD").end(ending[0]); err != nil || status != http.StatusAccepted {
		t.Errorf("end: %d, %v", status, err)
	}
	public := e.workload("PUBLIC")
	public.endKey = ending[1].EndKey
	if status, err := public.call("POST", wire.PathTasks+"/"+ending[1].Task.ID+"/end", `{"outcome":"failed","workload":"spiffe://dev.errand/report"}`, &wire.Receipt{}); err != nil || status != http.StatusAccepted {
		t.Errorf("end at the public listener: %d, %v", status, err)
	}
	var jwks map[string]any
	if status, err := public.call("GET", wire.PathJWKS, "", &jwks); err != nil || jwks["keys"] == nil {
		t.Errorf("keys: %d, %v", status, err)
	}
	e.signal("redis", syscall.SIGCONT)
	for _, at := range []string{"A_WORKLOAD", "B_WORKLOAD"} {
		for _, begun := range ending {
			soon(t, 30*time.Second, "the end is in Redis", func() bool {
				live, err := e.workload(at).live(begun.Tokens[0].GrantID)
				return err == nil && !live
			})
		}
	}
	soon(t, 30*time.Second, "a task begins again", func() bool { _, err := e.workload("WORKLOAD").begin(); return err == nil })
	e.signal("redis", syscall.SIGSTOP) // Ctrl-C ends it all the same
}

// keys is what errand keys list prints, asking one replica.
func (e *example) keys(at string) string {
	e.t.Helper()
	cmd := exec.Command("errand", "keys", "list", "-o", "json")
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+e.socket("operator"), "ERRAND_BROKER_ID=spiffe://dev.errand/errand", "ERRAND_OPERATOR_URL=https://"+e.at[at])
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		e.t.Errorf("errand keys list: %v", err)
	}
	return string(out)
}

func (e *example) pid(name string) int {
	e.t.Helper()
	text, err := os.ReadFile(filepath.Join(e.state, name+".pid"))
	if err != nil {
		e.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		e.t.Fatal(err)
	}
	return pid
}

// kill kills replica a with SIGKILL while tasks end at both, and looks for each end that was answered.
func (e *example) kill(verifiers []*verify.Verifier) {
	t := e.t
	pid := e.pid("a")
	var mu sync.Mutex
	var ended, lost []wire.BeginResponse // whose end was answered, and whose was not
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for i := range 4 {
		w := e.workload([]string{"A_WORKLOAD", "B_WORKLOAD"}[i%2])
		workers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				begun, err := w.begin()
				if err != nil {
					time.Sleep(10 * time.Millisecond) // a is gone
					continue
				}
				status, err := w.end(begun)
				mu.Lock()
				if err == nil && status == http.StatusOK {
					ended = append(ended, begun)
				} else {
					lost = append(lost, begun)
				}
				mu.Unlock()
			}
		})
	}
	enough := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(ended) >= n
		}
	}
	soon(t, 20*time.Second, "some tasks end", enough(40))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	soon(t, 20*time.Second, "more end at the other replica", enough(80))
	close(stop)
	workers.Wait()
	b := e.workload("B_WORKLOAD")
	for _, begun := range ended {
		if live, err := b.live(begun.Tokens[0].GrantID); err != nil || live {
			t.Fatalf("%s was ended: live %t, %v", begun.Task.ID, live, err)
		}
	}
	for _, v := range verifiers {
		for _, begun := range ended {
			soon(t, 20*time.Second, "a token that was ended is refused", func() bool {
				_, err := v.Verify(t.Context(), begun.Tokens[0].AccessToken, &verify.Peer{Certificate: e.leaf})
				return errors.Is(err, verify.ErrRevoked)
			})
		}
	}
	t.Logf("%d ends were answered, and none is lost", len(ended))
	e.recorded(ended, lost)
}

// recorded waits until replica b has recorded what a has not, and wants each end in a log: those that were answered, and
// of the others those that have happened.
func (e *example) recorded(ended, lost []wire.BeginResponse) {
	e.t.Helper()
	soon(e.t, 2*broker.RecordBound, "the other replica records what the one that was killed has left", func() bool {
		log, err := os.ReadFile(filepath.Join(e.state, "b.log"))
		return err == nil && strings.Contains(string(log), "has not recorded its ends")
	})
	b := e.workload("B_WORKLOAD")
	for _, begun := range lost {
		var task wire.Task
		if _, err := b.call("GET", wire.PathTasks+"/"+begun.Task.ID, "", &task); err != nil {
			e.t.Fatal(err)
		}
		if task.State == wire.StateCompleted {
			ended = append(ended, begun)
		}
	}
	logged := map[string]bool{}
	var left int
	for _, replica := range []string{"a", "b"} {
		log, err := os.Open(filepath.Join(e.state, replica, "audit.jsonl"))
		if err != nil {
			e.t.Fatal(err)
		}
		defer log.Close()
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line audit.Line
			if err := json.Unmarshal(lines.Bytes(), &line); err == nil && line.Kind == string(broker.EventTaskEnded) { // the last one may be torn
				if line.Reconciled && !logged[line.Task] {
					left++
				}
				logged[line.Task] = true
			}
		}
	}
	for _, begun := range ended {
		if !logged[begun.Task.ID] {
			e.t.Errorf("no audit log has the end of %s", begun.Task.ID)
		}
	}
	e.t.Logf("%d ends were not answered, and of %d that happened the killed replica had left %d unrecorded", len(lost), len(ended), left)
}
