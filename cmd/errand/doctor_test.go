package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// answers are what a broker says to errand doctor.
type answers struct {
	who     wire.Whoami
	ahead   time.Duration // of its clock
	feed    wire.FeedPosition
	problem string // the name of what it refuses everything with; "" for nothing
}

// well is a broker that is, and a workload that may have a token and serves an audience.
func well() *answers {
	return &answers{who: wire.Whoami{
		Workload: "spiffe://example.org/alice", Owner: "team-fin", Ceiling: map[string][]string{"orders": {"orders:read"}},
		Serves: []string{"stock"}, Replica: wire.Replica{Version: "1.2.3", Ready: true},
	}}
}

// serve has a broker say so, to a workload that has all in its environment.
func (a *answers) serve(t *testing.T) {
	t.Helper()
	fakeOperator(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case a.problem != "":
			w.Header().Set("Content-Type", wire.TypeProblem)
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(wire.Problem{Type: "https://errand.test/problems/" + a.problem, Title: "Refused", Detail: a.problem})
		case r.URL.Path == wire.PathWhoami:
			who := a.who
			who.Replica.Time = time.Now().Add(a.ahead)
			writeJSON(w, who)
		case r.URL.Path == wire.PathFeedPosition:
			position := a.feed
			position.Nonce += r.URL.Query().Get("nonce")
			writeJSON(w, position)
		default:
			http.NotFound(w, r)
		}
	})
	t.Setenv("ERRAND_BROKER_URL", os.Getenv("ERRAND_OPERATOR_URL")) // they are the same to a fake
}

// TestDoctor: each line that is not ok, with the exit code, and how to mend it.
func TestDoctor(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*answers)
		code   int
		want   string // the line's result and check
		detail string
	}{
		"all is well":       {func(*answers) {}, 0, "ok store", "ready: errand 1.2.3 issues tokens"},
		"clock":             {func(a *answers) { a.ahead = time.Second }, 0, "ok clock", "behind the broker"},
		"clock behind":      {func(a *answers) { a.ahead = 3800 * time.Millisecond }, 0, "warn clock", "behind the broker"},
		"clock ahead":       {func(a *answers) { a.ahead = -3800 * time.Millisecond }, 0, "warn clock", "ahead of the broker"},
		"clock far behind":  {func(a *answers) { a.ahead = 20 * time.Second }, 1, "fail clock", "behind the broker"},
		"clock far ahead":   {func(a *answers) { a.ahead = -20 * time.Second }, 1, "fail clock", "ahead of the broker"},
		"not ready":         {func(a *answers) { a.who.Replica = wire.Replica{Reason: "its audit log is full"} }, 1, "fail store", "its audit log is full"},
		"no store":          {func(a *answers) { a.problem = wire.ProblemStoreUnavailable }, 8, "fail store", "Refused: store-unavailable"},
		"starting":          {func(a *answers) { a.problem = wire.ProblemNotReady }, 8, "fail store", "Refused: not-ready"},
		"unknown SVID":      {func(a *answers) { a.problem = wire.ProblemUnauthenticated }, 4, "fail answer", "Refused: unauthenticated"},
		"feed":              {func(a *answers) { a.feed.AgeMS = 2000 }, 0, "ok feed", "server of stock; the broker's position is 2s old"},
		"feed is old":       {func(a *answers) { a.feed.AgeMS = 2001 }, 0, "warn feed", "the broker's position is 2.001s old"},
		"feed is still old": {func(a *answers) { a.feed.AgeMS = 10000 }, 0, "warn feed", "the broker's position is 10s old"},
		"feed is too old":   {func(a *answers) { a.feed.AgeMS = 10001 }, 1, "fail feed", "the broker's position is 10.001s old"},
		"feed of before":    {func(a *answers) { a.feed.Nonce = "another" }, 1, "fail feed", "the broker's position is 0s old"},
		"locked": {func(a *answers) {
			a.who.Locks = []wire.Lock{{ID: "lck_1", Reason: "INC-4411", ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}}
		}, 1, "fail registration", "locked by lck_1 until 2030-01-02T03:04:05Z: INC-4411"},
		"empty ceiling": {func(a *answers) { a.who.Ceiling = nil }, 0, "warn registration", "owner team-fin, and may ask for nothing: the ceiling is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			a := well()
			c.change(a)
			a.serve(t)
			examined(t, c.code, c.want, c.detail)
		})
	}
}

// examined wants errand doctor to exit with a code, and its one line of a check that is not skipped to have a
// result and a detail, and how to mend it unless it is ok.
func examined(t *testing.T, want int, line, detail string) {
	t.Helper()
	code, stdout, stderr := errand("doctor", "-o", "json")
	var said struct{ Checks []check }
	if err := json.Unmarshal([]byte(stdout), &said); err != nil || code != want {
		t.Fatalf("exit code %d, %v, %s%s", code, err, stdout, stderr)
	}
	for _, c := range said.Checks {
		if c.Result+" "+c.Check == line && strings.Contains(c.Detail, detail) && (c.Mend == "") == (c.Result == fine) {
			return
		}
	}
	t.Errorf("no %q with %q in %s", line, detail, stdout)
}

// TestDoctorClock has what is exactly at its bounds, and a slow request, which nobody's clock is blamed for.
func TestDoctorClock(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		off, took time.Duration
		want      string
	}{
		{2500 * ms, 0, fine}, {2501 * ms, 0, warning}, {5000 * ms, 0, warning}, {5001 * ms, 0, failure},
		{-2500 * ms, 0, fine}, {-2501 * ms, 0, warning}, {-5000 * ms, 0, warning}, {-5001 * ms, 0, failure},
		{3500 * ms, 2000 * ms, fine}, {3501 * ms, 2000 * ms, warning}, {-6001 * ms, 2000 * ms, failure},
	} {
		d := doctor{tell: func(check) {}}
		broker := time.Unix(1_800_000_000, 0)
		d.clock(wire.Replica{Time: broker}, broker.Add(c.off-c.took/2), c.took)
		if got := d.checks[0]; got.Result != c.want {
			t.Errorf("%s off, after %s: %+v, want %s", c.off, c.took, got, c.want)
		}
	}
}

// TestDoctorIdentity has an SVID in the last eighth of its life, and one that is over.
func TestDoctorIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		lived, left time.Duration
		code        int
		want        string
		detail      string
	}{
		"well":        {50 * time.Minute, 10 * time.Minute, 0, "ok identity", "spiffe://example.org/alice, from "},
		"nearly over": {55 * time.Minute, 5 * time.Minute, 0, "warn identity", "expires in "},
		"over":        {time.Hour, -time.Minute, 4, "fail identity", "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			well().serve(t)
			writeSVID(t, os.Getenv("ERRAND_IDENTITY_DIR"), c.lived, c.left)
			examined(t, c.code, c.want, c.detail)
		})
	}
}

// writeSVID replaces that of alice in a folder by one that has lived and will live for so long, and adds its CA to the
// trust bundle there.
func writeSVID(t *testing.T, dir string, lived, left time.Duration) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from, until := time.Now().Add(-lived), time.Now().Add(left)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until.Add(time.Hour), SubjectKeyId: []byte{1},
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/alice"}},
	}
	certificate := func(of *x509.Certificate) []byte {
		der, err := x509.CreateCertificate(rand.Reader, of, ca, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "svid_bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"svid.pem": certificate(leaf), "svid_key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		"svid_bundle.pem": append(bundle, certificate(ca)...),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
