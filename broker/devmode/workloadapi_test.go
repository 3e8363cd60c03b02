package devmode

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const patience = 20 * time.Second

// run runs the Workload API until the test ends.
func run(t *testing.T, api *WorkloadAPI) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func add(t *testing.T, api *WorkloadAPI, path string) string {
	t.Helper()
	addr, err := api.Add(workloadID(path))
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func source(t *testing.T, addr string) *workloadapi.X509Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func serial(t *testing.T, s *workloadapi.X509Source) string {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid.Certificates[0].SerialNumber.String()
}

func updated(t *testing.T, s *workloadapi.X509Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.WaitUntilUpdated(ctx); err != nil {
		t.Fatalf("no update: %v", err)
	}
}

func TestEachSocketIsOneIdentity(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), 0)
	before := add(t, api, "/report")
	run(t, api)
	during := add(t, api, "/ns/fin/sa/export")
	for addr, want := range map[string]spiffeid.ID{before: workloadID("/report"), during: workloadID("/ns/fin/sa/export")} {
		svid, err := source(t, addr).GetX509SVID()
		if err != nil || svid.ID != want {
			t.Errorf("%s answers %v, %v; want %s", addr, svid, err, want)
		}
	}
	if again := add(t, api, "/report"); again != before {
		t.Errorf("adding an identity again moved it from %s to %s", before, again)
	}
}

func TestRotate(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), time.Hour)
	rotated, other := source2(t, api)
	first, same := serial(t, rotated), serial(t, other)
	if err := api.Rotate(workloadID("/a")); err != nil {
		t.Fatal(err)
	}
	updated(t, rotated)
	if serial(t, rotated) == first {
		t.Error("the SVID is the same after a rotation")
	}
	if serial(t, other) != same {
		t.Error("the SVID of another identity was rotated too")
	}
	if err := api.Rotate(workloadID("/nobody")); err == nil {
		t.Error("an identity that was never added was rotated")
	}
}

// source2 runs the API with the identities /a and /b and returns their sources.
func source2(t *testing.T, api *WorkloadAPI) (a, b *workloadapi.X509Source) {
	t.Helper()
	addrA, addrB := add(t, api, "/a"), add(t, api, "/b")
	run(t, api)
	return source(t, addrA), source(t, addrB)
}

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestRotatesAtHalfLife(t *testing.T) {
	clock := &clock{at: time.Now().Truncate(time.Second)}
	const life = 16 * time.Second
	api := NewWorkloadAPI(newCA(t, Options{Now: clock.now}), t.TempDir(), life)
	s, _ := source2(t, api)
	first := serial(t, s)

	clock.move(life/2 - time.Nanosecond)
	if err := api.rotateDue(); err != nil {
		t.Fatal(err)
	}
	api.mu.Lock()
	early := api.endpoints[workloadID("/a")].svid.Certificates[0].SerialNumber.String() != first
	api.mu.Unlock()
	if early {
		t.Fatal("rotated before half of the life had passed")
	}
	clock.move(time.Nanosecond)
	updated(t, s) // by Run's own look at what is due
	if serial(t, s) == first {
		t.Error("not rotated at half of the life")
	}
}

func TestFederate(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), time.Hour)
	other, err := NewCA("partner.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := source2(t, api)
	if _, err := s.GetX509BundleForTrustDomain(other.TrustDomain()); err == nil {
		t.Fatal("a bundle that was never federated is there")
	}
	api.Federate(other.Bundle())
	updated(t, s)
	got, err := s.GetX509BundleForTrustDomain(other.TrustDomain())
	if err != nil || !got.Equal(other.Bundle()) {
		t.Fatalf("the federated bundle is %v, %v", got, err)
	}
	api.Federate()
	updated(t, s)
	if _, err := s.GetX509BundleForTrustDomain(other.TrustDomain()); err == nil {
		t.Error("the bundle is still there after it was taken away")
	}
}

func TestFetchX509Bundles(t *testing.T) {
	ca := newCA(t, Options{})
	other, err := NewCA("partner.example", Options{})
	if err != nil {
		t.Fatal(err)
	}
	api := NewWorkloadAPI(ca, t.TempDir(), time.Hour)
	addr := add(t, api, "/a")
	api.Federate(other.Bundle())
	run(t, api)
	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	set, err := client.FetchX509Bundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, authority := range []*CA{ca, other} {
		if b, ok := set.Get(authority.TrustDomain()); !ok || !b.Equal(authority.Bundle()) {
			t.Errorf("the bundle of %s is %v", authority.TrustDomain(), b)
		}
	}
}

func TestMutualTLS(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), time.Hour)
	server, client := source2(t, api)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var seen spiffeid.ID
	s := &http.Server{
		TLSConfig: tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(workloadID("/b"))),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = spiffeid.RequireFromURI(r.TLS.PeerCertificates[0].URIs[0])
		}),
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(l, "", "") }()
	defer func() { s.Close(); <-served }()

	call := func(want spiffeid.ID) error {
		transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(want))}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
		return err
	}
	if err := call(workloadID("/a")); err != nil || seen != workloadID("/b") {
		t.Errorf("the call by /b: %v; the server saw %q", err, seen)
	}
	if err := call(workloadID("/c")); err == nil {
		t.Error("a server that is /a was taken for /c")
	}
}

func dial(t *testing.T, addr string) workload.SpiffeWorkloadAPIClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return workload.NewSpiffeWorkloadAPIClient(conn)
}

func TestSecurityHeader(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), time.Hour)
	client := dial(t, add(t, api, "/a"))
	run(t, api)
	for name, c := range map[string]struct {
		header []string
		want   codes.Code
	}{
		"right":   {[]string{securityHeader, "true"}, codes.OK},
		"missing": {nil, codes.InvalidArgument},
		"false":   {[]string{securityHeader, "false"}, codes.InvalidArgument},
		"upper":   {[]string{securityHeader, "TRUE"}, codes.InvalidArgument},
		"twice":   {[]string{securityHeader, "true", securityHeader, "true"}, codes.InvalidArgument},
	} {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), c.header...), patience)
		stream, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.want {
			t.Errorf("%s: %v; want %v", name, err, c.want)
		}
		_, err = client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{})
		if want := map[bool]codes.Code{true: codes.Unimplemented, false: c.want}[c.want == codes.OK]; status.Code(err) != want {
			t.Errorf("%s: FetchJWTSVID answers %v; want %v", name, err, want)
		}
		cancel()
	}
}

func TestPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sockets")
	api := NewWorkloadAPI(newCA(t, Options{}), dir, time.Hour)
	path := strings.TrimPrefix(add(t, api, "/a"), "unix://")
	defer api.Close()
	for path, want := range map[string]fs.FileMode{dir: 0o700, path: 0o600} {
		if found, err := os.Stat(path); err != nil || found.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, found.Mode(), err, want)
		}
	}
}

func TestDirectoryRefused(t *testing.T) {
	ca := newCA(t, Options{})
	shared, link, file := filepath.Join(t.TempDir(), "d"), filepath.Join(t.TempDir(), "l"), filepath.Join(t.TempDir(), "f")
	for _, err := range []error{os.Mkdir(shared, 0o700), os.Symlink(t.TempDir(), link), os.WriteFile(file, nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(dir, want string) {
		t.Helper()
		api := NewWorkloadAPI(ca, dir, time.Hour)
		defer api.Close()
		if _, err := api.Add(workloadID("/a")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", dir, err, want)
		}
	}
	for _, mode := range []fs.FileMode{0o720, 0o702, 0o777, 0o777 | fs.ModeSticky} {
		if err := os.Chmod(shared, mode); err != nil {
			t.Fatal(err)
		}
		refused(shared, "others can write the directory")
	}
	refused(link, "is not a directory")
	refused(file, "not a directory")

	if err := os.Chmod(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	api := NewWorkloadAPI(ca, shared, time.Hour)
	defer api.Close()
	if _, err := api.Add(workloadID("/a")); err != nil {
		t.Errorf("a directory that others can only read: %v", err)
	}
}

func TestSocketPathLength(t *testing.T) {
	base := t.TempDir()
	api := func(length int) *WorkloadAPI {
		fill := length - len(base) - len("//a.sock")
		return NewWorkloadAPI(newCA(t, Options{}), filepath.Join(base, strings.Repeat("x", fill)), time.Hour)
	}
	longest := api(MaxSocketPath)
	defer longest.Close()
	if addr := add(t, longest, "/a"); len(strings.TrimPrefix(addr, "unix://")) != MaxSocketPath {
		t.Fatalf("%s is not of the longest length", addr)
	}
	longer := api(MaxSocketPath + 1)
	defer longer.Close()
	if _, err := longer.Add(workloadID("/a")); err == nil || !strings.Contains(err.Error(), "choose a shorter directory") {
		t.Errorf("one byte more: %v", err)
	}
}

func TestSocketInTheWay(t *testing.T) {
	ca, dir := newCA(t, Options{}), t.TempDir()
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "a.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false)
	killed.Close()
	first := NewWorkloadAPI(ca, dir, time.Hour)
	defer first.Close()
	addr := add(t, first, "/a")

	second := NewWorkloadAPI(ca, dir, time.Hour)
	defer second.Close()
	if _, err := second.Add(workloadID("/a")); err == nil || !strings.Contains(err.Error(), "another process is serving") {
		t.Errorf("a socket that is in use was taken: %v", err)
	}
	run(t, first)
	source(t, addr)

	if err := os.WriteFile(filepath.Join(dir, "b.sock"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Add(workloadID("/b")); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file in the way: %v", err)
	}
}

func TestSocketNames(t *testing.T) {
	seen := map[string]string{}
	for _, path := range []string{
		"/a", "/A", "/a/b", "/a-b", "/a.b", "/b", "/b/a/b", "/" + strings.Repeat("a", maxName), "/" + strings.Repeat("a", maxName+1),
		"/" + strings.Repeat("a", maxName+2), "/x/" + strings.Repeat("a", 2000),
	} {
		name := socketName(workloadID(path))
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s have the same socket %s", path, other, name)
		}
		if seen[name] = path; len(name) > maxName+len("-01234567.sock") || filepath.Base(name) != name {
			t.Errorf("%s has the socket %q", path, name)
		}
	}
}

func TestEnd(t *testing.T) {
	dir := t.TempDir()
	api := NewWorkloadAPI(newCA(t, Options{}), dir, time.Hour)
	addr := add(t, api, "/a")
	stop := run(t, api)
	s := source(t, addr) // with its stream open
	if err := waitRunning(api); err != nil {
		t.Fatal(err)
	}
	if err := api.Run(t.Context()); err == nil {
		t.Error("it ran twice at once")
	}
	stop()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := api.Add(workloadID("/b")); !errors.Is(err, errClosed) {
		t.Errorf("Add after the end: %v", err)
	}
	if err := api.Run(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("Run after the end: %v", err)
	}
	if err := api.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	// The client takes it for an outage and comes back to the same address.
	again := NewWorkloadAPI(newCA(t, Options{}), dir, time.Hour)
	if add(t, again, "/a") != addr {
		t.Error("the address of an identity has changed")
	}
	run(t, again)
	updated(t, s)
}

func waitRunning(api *WorkloadAPI) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		api.mu.Lock()
		ok := api.phase == running
		api.mu.Unlock()
		if ok {
			return nil
		}
	}
	return errors.New("it does not run")
}

func TestCloseWithoutRun(t *testing.T) {
	dir := t.TempDir()
	api := NewWorkloadAPI(newCA(t, Options{}), dir, time.Hour)
	add(t, api, "/a")
	if err := api.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// When the CA is about to expire, it says so instead of serving what nobody accepts.
func TestExpiredCA(t *testing.T) {
	clock := &clock{at: time.Now()}
	api := NewWorkloadAPI(newCA(t, Options{Life: 3 * time.Second, Now: clock.now}), t.TempDir(), 2*time.Second)
	add(t, api, "/a")
	clock.move(2 * time.Second)
	if err := api.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "would outlive the CA") {
		t.Errorf("Run: %v", err)
	}
}

func TestMaxIdentities(t *testing.T) {
	api := NewWorkloadAPI(newCA(t, Options{}), t.TempDir(), time.Hour)
	defer api.Close()
	shared := newEndpoint(api, nil, nopListener{}, "")
	for i := range MaxIdentities - 1 {
		api.endpoints[workloadID("/filler/"+strings.Repeat("x", i+1))] = shared
	}
	add(t, api, "/last")
	if _, err := api.Add(workloadID("/more")); err == nil || !strings.Contains(err.Error(), "1000 identities") {
		t.Errorf("one more than the most: %v", err)
	}
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }
