package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redistest"
	jose "github.com/go-jose/go-jose/v4"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	testscript.Main(leakFree{m}, map[string]func(){"errand": main})
}

// raceOptions are those of the race detector. It has each program sleep for a second at its end, to see what its other
// goroutines do until then; the stories run hundreds.
const raceOptions = "GORACE"

// storiesAtOnce is how many run at the same time at least: for the most part they wait.
const storiesAtOnce = 4

// leakFree fails the run when a test leaves a goroutine behind.
type leakFree struct{ m *testing.M }

func (l leakFree) Run() int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given && runtime.GOMAXPROCS(0) < storiesAtOnce {
		_ = flag.Set("test.parallel", strconv.Itoa(storiesAtOnce)) // the flag is there
	}
	if os.Getenv(raceOptions) == "" {
		os.Setenv(raceOptions, "atexit_sleep_ms=20")
	}
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return code
}

// TestScripts runs the stories in testdata, several at once: each is a file that reads as documentation.
func TestScripts(t *testing.T) {
	t.Parallel() // with the first hour
	testscript.Run(t, stories(t, "testdata"))
}

// TestScriptsAlone runs those that hold errand to a time of less than a second or so, one after the other, with nothing
// beside them.
func TestScriptsAlone(t *testing.T) {
	testscript.RunT(inTurn{t}, stories(t, filepath.Join("testdata", "alone")))
}

// inTurn is a test whose parts are never parallel.
type inTurn struct{ *testing.T }

func (inTurn) Parallel()     {}
func (inTurn) Verbose() bool { return testing.Verbose() }
func (t inTurn) Run(name string, story func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { story(inTurn{t}) })
}

func stories(t *testing.T, dir string) testscript.Params {
	deadline, _ := t.Deadline()
	return testscript.Params{
		Dir: dir, Deadline: deadline,
		Setup: func(env *testscript.Env) error {
			// Sockets have short paths; the script's own folder may not.
			dir, err := os.MkdirTemp("", "errand-script-")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("SHORT", dir)
			env.Setenv(raceOptions, os.Getenv(raceOptions))
			env.Setenv(EnvOutput, "table") // as on a terminal
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"redis": func(ts *testscript.TestScript, _ bool, args []string) { startRedis(t, ts, args) },
			"ready": ready, "heard": heard, "await": await, "appears": appears, "busy": busy, "pause": pauseShort, "exitcode": exitCode, "svids": svids, "selfsigned": selfSigned, "ports": ports, "hold": hold, "kid": kid, "random": random, "until": until, "as": as, "forge": forge, "taskid": taskID, "recipe": recipe, "handle": handle, "idof": idOf, "silent": silent,
		},
	}
}

// ready waits until a file with the description of a development broker is there, and the broker
// that it describes says that it is ready.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready FILE")
	}
	eventually(ts, func() bool {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err != nil {
			return false
		}
		_, rest, ok := strings.Cut(string(text), `"ops_url": "http://`)
		ops, _, _ := strings.Cut(rest, `"`)
		return ok && isReady(ops)
	})
}

// heard waits until the development broker of a file like that has heard of a verifier.
func heard(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: heard FILE")
	}
	eventually(ts, func() bool {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		ts.Check(err)
		_, rest, _ := strings.Cut(string(text), `"ops_url": "`)
		ops, _, _ := strings.Cut(rest, `"`)
		resp, err := http.Get(ops + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		metrics, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(metrics), "\nerrand_verifiers 1\n")
	})
}

// await waits until the replica with an ops listener at an address is ready.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await ADDRESS")
	}
	eventually(ts, func() bool { return isReady(args[0]) })
}

// appears waits until a file is there.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	eventually(ts, func() bool {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err == nil
	})
}

func eventually(ts *testscript.TestScript, ok func() bool) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	ts.Fatalf("not within a minute")
}

func isReady(ops string) bool {
	resp, err := http.Get("http://" + ops + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode == http.StatusOK
}

// ports sets variables to free addresses of this machine.
func ports(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // none is given twice
		ts.Setenv(name, l.Addr().String())
	}
}

// silent sets a variable to an address where connections are taken, and nobody ever says a word.
func silent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: silent VARIABLE")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}

// hold opens a TLS connection to an address, and asks nothing on it until the script ends. After the
// handshake the server is sure to have it.
func hold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hold ADDRESS")
	}
	conn, err := tls.Dial("tcp", args[0], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
}

// as makes the script an identity of the development broker of a folder, as errand dev env does.
func as(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: as NAME DIR")
	}
	d, err := demo.Describe(ts.MkAbs(args[1]))
	ts.Check(err)
	ts.Setenv("SPIFFE_ENDPOINT_SOCKET", d.Sockets[args[0]])
	ts.Setenv("ERRAND_OPERATOR_URL", d.Operator)
	ts.Setenv("ERRAND_BROKER_URL", d.BrokerURL)
	ts.Setenv("ERRAND_ISSUER", d.Issuer)
	ts.Setenv("ERRAND_DEV_ORDERS", d.OrdersURL)
	ts.Setenv("ERRAND_BROKER_ID", d.BrokerID)
	ts.Setenv("ERRAND_BROKER_URL", d.BrokerURL)
	ts.Setenv("ERRAND_DEV_ORDERS", d.OrdersURL)
}

// startRedis starts a redis-server with a password, which ends with the test, and sets a variable to its
// address; or pauses and resumes one.
func startRedis(t *testing.T, ts *testscript.TestScript, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: redis VARIABLE PASSWORD, redis -pause ADDRESS, redis -resume ADDRESS")
	}
	if s, ok := redisServers.Load(args[1]); ok {
		map[string]func(){"-pause": s.(*redistest.Server).Pause, "-resume": s.(*redistest.Server).Resume}[args[0]]()
		return
	}
	s := redistest.Start(t)
	s.Must("config", "set", "requirepass", args[1])
	ts.Setenv(args[0], s.Addr())
	redisServers.Store(s.Addr(), s)
}

// redisServers are those that stories have started, by their addresses.
var redisServers sync.Map

// random writes 32 random bytes into a file for its owner alone.
func random(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: random FILE")
	}
	text := make([]byte, 32)
	_, _ = rand.Read(text) // never fails
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), text, 0o600))
}

// until repeats a command until a pattern is in what it prints.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND ARGS...")
	}
	pattern := regexp.MustCompile(args[0])
	eventually(ts, func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout"))
	})
}

// kid sets a variable to the kid of the first key in a state, as the last command has printed them in
// JSON.
func kid(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: kid STATE VARIABLE")
	}
	var list wire.KeyList
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	for _, k := range list.Keys {
		if k.State == args[0] {
			ts.Setenv(args[1], k.ID)
			return
		}
	}
	ts.Fatalf("no key is %s", args[0])
}

// taskid sets a variable to the ID of the task that the last command has spoken of.
func taskID(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: taskid VARIABLE")
	}
	id := regexp.MustCompile("tsk_[a-z0-9]+").FindString(ts.ReadFile("stderr") + ts.ReadFile("stdout"))
	if id == "" {
		ts.Fatalf("it has named no task")
	}
	ts.Setenv(args[0], id)
}

// idof sets a variable to the first ID with a prefix that the last command has printed.
func idOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: idof PREFIX VARIABLE")
	}
	id := regexp.MustCompile(args[0] + "[a-z0-9]+").FindString(ts.ReadFile("stdout"))
	if id == "" {
		ts.Fatalf("it has printed no %s", args[0])
	}
	ts.Setenv(args[1], id)
}

// handle sets a variable to the handle that the last command has printed.
func handle(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: handle VARIABLE")
	}
	found := regexp.MustCompile(`hdl_[\w.-]+`).FindString(ts.ReadFile("stdout"))
	if found == "" {
		ts.Fatalf("it has printed no handle")
	}
	ts.Setenv(args[0], found)
}

// svids makes a trust domain, example.org, and writes the identities that are named, each into a
// folder of that name: svid.pem, svid_key.pem and svid_bundle.pem.
func svids(ts *testscript.TestScript, neg bool, args []string) {
	ca, err := devmode.NewCA("example.org", devmode.Options{})
	ts.Check(err)
	short := ts.Getenv("SHORT")
	api := devmode.NewWorkloadAPI(ca, filepath.Join(short, "api"), time.Hour)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	stopped := make(chan error, 1)
	go func() { stopped <- api.Run(ctx) }()
	defer func() { cancel(); <-stopped }()
	for _, name := range args {
		addr, err := api.Add(spiffeid.RequireFromString("spiffe://example.org/" + name))
		ts.Check(err)
		who, err := devmode.Open(ctx, addr)
		ts.Check(err)
		_, err = who.WriteFiles(ts.MkAbs(name))
		ts.Check(errors.Join(err, who.Close()))
	}
}

// selfSigned makes certificates without a SPIFFE ID, as openssl req -x509 does, and sets NAME_sha256 to the x5t#S256 of each.
func selfSigned(ts *testscript.TestScript, neg bool, args []string) {
	life := time.Hour
	if len(args) > 0 && args[0] == "-expired" {
		life, args = -time.Minute, args[1:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: selfsigned [-expired] NAME...")
	}
	for _, name := range args {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
			BasicConstraintsValid: true, IsCA: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		ts.Check(err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
		ts.Check(os.WriteFile(ts.MkAbs(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
		digest := sha256.Sum256(der)
		ts.Setenv(name+"_sha256", base64.RawURLEncoding.EncodeToString(digest[:]))
	}
}

// forge writes a token, signed by a key of the script's own, and the key's JWK Set: it stands for another
// issuer, or for one whose keys somebody has. Claims are given as name=JSON.
func forge(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: forge TOKEN KEYS [CLAIM=JSON]...")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	const task, who = "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa", "spiffe://dev.errand/report"
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": "https://issuer.example.org", "sub": who, "client_id": who, "aud": "orders", "iat": now, "exp": now + 60,
		"jti": "gnt_00aaaaaaaaaaaaaaaaaaaaaaaaaa", "txn": task, "scope": "orders:read", "ep": []int{1, 0},
		"task": map[string]any{"id": task, "path": []string{task}, "name": "forged"},
	}
	for _, arg := range args[2:] {
		name, value, _ := strings.Cut(arg, "=")
		claims[name] = json.RawMessage(value)
	}
	payload, err := json.Marshal(claims)
	ts.Check(err)
	public := jose.JSONWebKey{Key: key.Public(), KeyID: "forged", Algorithm: "ES256", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType(wire.TokenType).WithHeader("kid", "forged"))
	ts.Check(err)
	signed, err := signer.Sign(payload)
	ts.Check(err)
	token, err := signed.CompactSerialize()
	ts.Check(err)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	ts.Check(errors.Join(err, os.WriteFile(ts.MkAbs(args[0]), []byte(token+"\n"), 0o600), os.WriteFile(ts.MkAbs(args[1]), set, 0o600)))
}

// pauseShort lets a program in the background get under way.
func pauseShort(*testscript.TestScript, bool, []string) { time.Sleep(time.Second) }

// busy sets BUSY to an address that the development broker of a description is using.
func busy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: busy FILE")
	}
	_, rest, _ := strings.Cut(ts.ReadFile(args[0]), `"broker_url": "https://`)
	address, _, _ := strings.Cut(rest, `"`)
	ts.Setenv("BUSY", address)
}

// exitCode runs a command line and compares its exit code.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode N errand ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}
