//go:build unix

package exec

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
)

// rotate gives the workload a new SVID, and returns when the source has it.
func rotate(t *testing.T, b *brokertest.Broker, of *devmode.Identity) {
	t.Helper()
	serial := func() string {
		svid, err := of.Source().GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return svid.Certificates[0].SerialNumber.String()
	}
	before := serial()
	b.RotateSVID("report")
	for serial() == before {
		time.Sleep(time.Millisecond)
	}
}

func begin(t *testing.T, client *sdk.Client) *sdk.Task {
	t.Helper()
	task, err := client.Begin(t.Context(), sdk.TaskSpec{Name: "export", Purpose: "FIN-212", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = task.Close() })
	return task
}

// boundPair reads a token and a certificate, and says whether the one is bound to the other.
func boundPair(dir string) error {
	token, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		return err
	}
	certs, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return err
	}
	parts := strings.Split(string(token), ".")
	if len(parts) != 3 {
		return fmt.Errorf("a token of %d parts", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err
	}
	var claims struct {
		Cnf struct {
			Thumbprint string `json:"x5t#S256"`
		} `json:"cnf"`
	}
	if err := json.Unmarshal(text, &claims); err != nil {
		return err
	}
	leaf, _ := pem.Decode(certs)
	if leaf == nil {
		return errors.New("no certificate")
	}
	sum := sha256.Sum256(leaf.Bytes)
	if got := base64.RawURLEncoding.EncodeToString(sum[:]); got != claims.Cnf.Thumbprint {
		return fmt.Errorf("the token is bound to %s, and the certificate is %s", claims.Cnf.Thumbprint, got)
	}
	return nil
}

// When the workload gets a new SVID, the folder gets it together with a token that is bound to it; who
// reads all the time never sees one without the other, and curl's file never points to another folder.
func TestRotationReplacesTokenAndCertificateAsOne(t *testing.T) {
	b := brokertest.New(t, brokertest.RealTime())
	who, err := devmode.Open(t.Context(), b.WorkloadAPI("report"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = who.Close() })
	client := b.Client("report", sdk.WithIdentity(sdk.FromSource(who.Source(), who.Source())))
	getenv, _ := inDir(t)
	s := &supply{
		client: client, task: begin(t, client), ask: sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}},
		folder: folder{home: mustHome(t, getenv).path, name: "orders"}, key: true, curl: true,
	}
	if err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			dir, err := filepath.EvalSymlinks(s.folder.path())
			if err == nil {
				err = boundPair(dir)
			}
			// Those who are slower than three renewals find their folder gone.
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		before := s.folder.last
		rotate(t, b, who)
		// The SDK asks for the next token behind its callers' backs, and hands out the old one meanwhile.
		for s.folder.last == before {
			if err := s.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	reading.Wait()
	dir, err := filepath.EvalSymlinks(s.folder.path())
	if err := errors.Join(err, boundPair(dir)); err != nil {
		t.Error(err)
	}
	config, err := os.ReadFile(filepath.Join(dir, curlFile))
	if want := fmt.Sprintf("cert = %q\n", filepath.Join(dir, certFile)); err != nil || !strings.Contains(string(config), want) {
		t.Errorf("curl is told %d lines without %s: %v", strings.Count(string(config), "\n"), want, err)
	}
	// Nothing new, nothing done.
	last := s.folder.last
	if err := s.look(t.Context()); err != nil || s.folder.last != last {
		t.Errorf("generation %d after %d, %v", s.folder.last, last, err)
	}
}

// Beyond its connections the endpoint hangs up on the oldest of those that have not shown the secret, which
// any user of the machine may have opened; the command's own are served, and the end of the task is said.
func TestEndpointIsBounded(t *testing.T) {
	b := brokertest.New(t, brokertest.RealTime())
	task := begin(t, b.Client("report"))
	e, err := newEndpoint(task, []Ask{{"orders", []string{"orders:read"}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	places := e.listener.(*limited)
	held := make([]net.Conn, maxConnections)
	for i := range held {
		held[i] = dial(t, e)
	}
	for places.len() < maxConnections {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		if status, err := ask(e); err != nil || status != http.StatusOK {
			t.Errorf("the command, among %d strangers: %d, %v", maxConnections, status, err)
		}
	}
	if n := places.len(); n > maxConnections {
		t.Errorf("%d connections at once", n)
	}
	if err := held[0].SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := held[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the oldest of them is still there: %v", err)
	}
	for _, conn := range held {
		conn.Close()
	}
	if err := task.Close(); err != nil {
		t.Error(err)
	}
	for places.len() > 0 {
		time.Sleep(time.Millisecond)
	}
	if status, err := ask(e); err != nil || status != http.StatusGone {
		t.Errorf("after the end: %d, %v", status, err)
	}
}

// Those that have shown the secret keep their places, also when all are taken.
func TestEndpointKeepsWhatItKnows(t *testing.T) {
	l := &limited{}
	for range maxConnections {
		c := &placed{of: l}
		if l.take(c) != nil {
			t.Fatal("no place where there was one")
		}
		c.settle()
	}
	if one := (&placed{of: l}); l.take(one) != one || l.len() != maxConnections {
		t.Error("one that is known was closed for one that is not")
	}
}

func dial(t *testing.T, e *endpoint) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", e.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask makes one request, over a connection of its own.
func ask(e *endpoint) (status int, err error) {
	req, err := http.NewRequest(http.MethodGet, e.url(), nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+e.secret)
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}
