package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	brokerID = "spiffe://example.org/errand"
	serverID = "spiffe://example.org/orders"
	agentID  = "spiffe://example.org/agents/recon"
	audience = "orders"
	epoch    = 1_700_000_000_000

	rootTask  = "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa"
	childTask = "tsk_00bbbbbbbbbbbbbbbbbbbbbbbbbb"
	grantID   = "gnt_00cccccccccccccccccccccccccc"
)

// authority is a CA that makes SVIDs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(tb)
	return &authority{cert: must(x509.ParseCertificate(der))(tb), key: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// svid makes a certificate for the ID, after edit.
func (a *authority) svid(tb testing.TB, id string, edit func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes([]byte(rand.Text())),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{must(url.Parse(id))(tb)},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	if edit != nil {
		edit(template)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(tb)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(tb)}
}

// signingKey is one of the issuer's keys.
type signingKey struct {
	kid     string
	alg     string
	private any
}

func newSigningKey(tb testing.TB, alg string) *signingKey {
	tb.Helper()
	k := &signingKey{kid: rand.Text(), alg: alg}
	switch alg {
	case "ES256":
		k.private = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
	case "RS256":
		k.private = must(rsa.GenerateKey(rand.Reader, 2048))(tb)
	case "EdDSA", "Ed25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			tb.Fatal(err)
		}
		k.private = private
	}
	return k
}

// jwk is the public key as JSON members.
func (k *signingKey) jwk(tb testing.TB) map[string]any {
	tb.Helper()
	public := k.private.(interface{ Public() crypto.PublicKey }).Public()
	text := must(json.Marshal(jose.JSONWebKey{Key: public, KeyID: k.kid, Use: "sig"}))(tb)
	members := map[string]any{}
	if err := json.Unmarshal(text, &members); err != nil {
		tb.Fatal(err)
	}
	members["alg"] = k.alg
	return members
}

// sign makes a compact JWS with go-jose.
func (k *signingKey) sign(tb testing.TB, typ string, payload []byte) string {
	tb.Helper()
	alg := jose.SignatureAlgorithm(k.alg)
	if k.alg == "Ed25519" {
		return k.forge(tb, fmt.Sprintf(`{"typ":%q,"alg":"Ed25519","kid":%q}`, typ, k.kid), string(payload))
	}
	options := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", k.kid)
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k.private}, options))(tb)
	return must(must(signer.Sign(payload))(tb).CompactSerialize())(tb)
}

// forge signs any header and payload, as a dishonest holder of the key could.
func (k *signingKey) forge(tb testing.TB, header, payload string) string {
	tb.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	sum := sha256.Sum256([]byte(input))
	switch private := k.private.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			tb.Fatal(err)
		}
		return input + "." + b64(rawSignature(r, s))
	case ed25519.PrivateKey:
		return input + "." + b64(ed25519.Sign(private, []byte(input)))
	}
	tb.Fatalf("cannot forge with %T", k.private)
	return ""
}

func rawSignature(r, s *big.Int) []byte {
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// broker is a fake: an issuer's public listener and its feed, with knobs.
type broker struct {
	tb       testing.TB
	ca       *authority
	files    verify.Files
	svid     tls.Certificate // the verifier's, in files
	agent    tls.Certificate // who presents the tokens
	public   *httptest.Server
	private  *httptest.Server
	key      *signingKey
	fetches  atomic.Int64 // of the key set
	snaps    atomic.Int64
	streamed atomic.Int64 // streams that were opened
	asked    atomic.Int64 // positions

	mu       sync.Mutex // guards all below
	keys     []map[string]any
	position wire.Position
	entries  []wire.FeedEntry
	changed  chan struct{} // closed when the feed has something to say
	raw      []string      // texts to write into the streams, after what there is
	age      time.Duration
	held     bool // streams say nothing new
	down     bool // every connection breaks
	override map[string]http.HandlerFunc
	reports  []wire.UsageReport
	acks     []wire.AckRequest
	shown    []string // serial numbers of the certificates that were shown to the feed's listener

	publicCert, privateCert tls.Certificate
}

func newBroker(tb testing.TB, shards int) *broker {
	tb.Helper()
	b := &broker{
		tb: tb, ca: newAuthority(tb), key: newSigningKey(tb, "ES256"),
		position: wire.Position{Epoch: epoch, Numbers: make([]uint64, shards)},
		changed:  make(chan struct{}), override: map[string]http.HandlerFunc{},
	}
	b.keys = []map[string]any{b.key.jwk(tb)}
	b.agent = b.ca.svid(tb, agentID, nil)
	b.svid = b.ca.svid(tb, serverID, nil)
	b.files = writeFiles(tb, tb.TempDir(), b.ca, b.svid)

	public, private := http.NewServeMux(), http.NewServeMux()
	public.HandleFunc(wire.PathMetadata, b.serveMetadata)
	public.HandleFunc(wire.PathJWKS, b.serveKeys)
	private.HandleFunc(wire.PathFeedSnapshot, b.serveSnapshot)
	private.HandleFunc(wire.PathFeedPosition, b.servePosition)
	private.HandleFunc(wire.PathFeed, b.serveStream)
	private.HandleFunc(wire.PathFeedUsage, b.serveUsage)
	private.HandleFunc(wire.PathFeedAcks, b.serveAck)
	b.publicCert, b.privateCert = b.ca.svid(tb, brokerID, nil), b.ca.svid(tb, brokerID, nil)
	b.public = b.serve(public, &b.publicCert, tls.NoClientCert)
	b.private = b.serve(private, &b.privateCert, tls.RequireAndVerifyClientCert)
	tb.Cleanup(func() {
		b.cut()
		b.public.Close()
		b.private.Close()
	})
	return b
}

func (b *broker) serve(mux *http.ServeMux, cert *tls.Certificate, ask tls.ClientAuthType) *httptest.Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		down, override := b.down, b.override[r.URL.Path]
		b.mu.Unlock()
		switch {
		case down:
			panic(http.ErrAbortHandler)
		case override != nil:
			override(w, r)
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	server.TLS = &tls.Config{
		// httptest puts a certificate of its own into the configuration; this one comes first.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return &tls.Config{
				Certificates: []tls.Certificate{*cert}, ClientAuth: ask, ClientCAs: b.ca.pool(), MinVersion: tls.VersionTLS13,
				NextProtos: []string{"http/1.1"}, VerifyConnection: b.note,
			}, nil
		},
	}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	return server
}

// note remembers which certificate a client showed.
func (b *broker) note(s tls.ConnectionState) error {
	if len(s.PeerCertificates) > 0 {
		b.change(func() { b.shown = append(b.shown, s.PeerCertificates[0].SerialNumber.String()) })
	}
	return nil
}

// writeFiles writes the three PEM files of verify.Files.
func writeFiles(tb testing.TB, dir string, ca *authority, own tls.Certificate) verify.Files {
	tb.Helper()
	key := must(x509.MarshalPKCS8PrivateKey(own.PrivateKey))(tb)
	f := verify.Files{
		Cert: filepath.Join(dir, "svid.pem"), Key: filepath.Join(dir, "key.pem"), Bundle: filepath.Join(dir, "bundle.pem"),
		BrokerID: brokerID,
	}
	writePEM(tb, f.Cert, "CERTIFICATE", own.Certificate[0])
	writePEM(tb, f.Key, "PRIVATE KEY", key)
	writePEM(tb, f.Bundle, "CERTIFICATE", ca.cert.Raw)
	return f
}

func writePEM(tb testing.TB, path, kind string, der []byte) {
	tb.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func (b *broker) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, wire.Metadata{
		Issuer: b.public.URL, JWKSURI: b.public.URL + wire.PathJWKS, ResponseTypes: []string{"none"},
		Feed: b.private.URL + wire.PathFeed, Broker: b.private.URL,
	})
}

func (b *broker) serveKeys(w http.ResponseWriter, _ *http.Request) {
	b.fetches.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	writeJSON(w, map[string]any{"keys": b.keys})
}

func (b *broker) serveSnapshot(w http.ResponseWriter, _ *http.Request) {
	b.snaps.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	writeJSON(w, wire.FeedEvent{Position: b.position.String(), Entries: b.entries})
}

func (b *broker) servePosition(w http.ResponseWriter, r *http.Request) {
	b.asked.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	writeJSON(w, wire.FeedPosition{Nonce: r.URL.Query().Get("nonce"), Position: b.position.String(), AgeMS: b.age.Milliseconds()})
}

func (b *broker) serveUsage(w http.ResponseWriter, r *http.Request) {
	var report wire.UsageReport
	if err := json.NewDecoder(r.Body).Decode(&report); err != nil || r.Method != http.MethodPost || r.URL.Query().Get("aud") != audience {
		http.Error(w, "not a report", http.StatusBadRequest)
		return
	}
	b.change(func() { b.reports = append(b.reports, report) })
	w.WriteHeader(http.StatusNoContent)
}

func (b *broker) serveAck(w http.ResponseWriter, r *http.Request) {
	var ack wire.AckRequest
	if err := json.NewDecoder(r.Body).Decode(&ack); err != nil || r.Method != http.MethodPost || r.URL.Query().Get("aud") != audience {
		http.Error(w, "not an acknowledgement", http.StatusBadRequest)
		return
	}
	b.change(func() { b.acks = append(b.acks, ack) })
	w.WriteHeader(http.StatusNoContent)
}

// acknowledged are the acknowledgements that have come.
func (b *broker) acknowledged() []wire.AckRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.acks)
}

// reported are the reports of usage that have come.
func (b *broker) reported() []wire.UsageReport {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.reports)
}

func (b *broker) serveStream(w http.ResponseWriter, r *http.Request) {
	b.streamed.Add(1)
	from, err := wire.ParsePosition(r.Header.Get(wire.HeaderLastEventID))
	if err != nil {
		http.Error(w, "no position", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", wire.TypeEvents)
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	b.mu.Lock()
	raws := len(b.raw)
	b.mu.Unlock()
	for first := true; ; first = false {
		b.mu.Lock()
		changed, position, down := b.changed, b.position, b.down
		raw := b.raw[min(raws, len(b.raw)):]
		raws = len(b.raw)
		news := slices.DeleteFunc(slices.Clone(b.entries), func(e wire.FeedEntry) bool { return from.Epoch == position.Epoch && e.Number <= from.Numbers[e.Shard] })
		held := b.held
		b.mu.Unlock()
		switch {
		case down:
			panic(http.ErrAbortHandler)
		case from.Epoch != position.Epoch || len(from.Numbers) != len(position.Numbers):
			if first {
				w.WriteHeader(http.StatusGone)
				return
			}
			fmt.Fprintf(w, "event: %s\ndata: {}\n\n", wire.EventReset)
			return
		case held:
			writeEvent(w, wire.EventBeat, wire.FeedEvent{Position: from.String()})
		case len(news) > 0:
			writeEvent(w, wire.EventDenials, wire.FeedEvent{Position: position.String(), Entries: news})
			from = position
		default:
			writeEvent(w, wire.EventBeat, wire.FeedEvent{Position: position.String()})
			from = position
		}
		for _, text := range raw {
			_, _ = io.WriteString(w, text)
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-beat.C:
		}
	}
}

func writeEvent(w io.Writer, name string, body wire.FeedEvent) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(w, "event: %s\nid: %s\ndata: %s\n\n", name, body.Position, data)
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", wire.TypeJSON)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		panic(err)
	}
}

// change edits the broker's state and wakes the streams.
func (b *broker) change(edit func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	edit()
	close(b.changed)
	b.changed = make(chan struct{})
}

// deny puts an entry into the feed, numbered, for as long as a token can live.
func (b *broker) deny(e wire.FeedEntry) {
	b.change(func() { b.add(e) })
}

func (b *broker) add(e wire.FeedEntry) {
	b.position = wire.Position{Epoch: b.position.Epoch, Numbers: slices.Clone(b.position.Numbers)}
	b.position.Numbers[e.Shard]++
	e.Number = b.position.Numbers[e.Shard]
	if e.Until.IsZero() {
		e.Until = time.Now().Add(2 * time.Minute).UTC()
	}
	b.entries = append(b.entries, e)
}

// write puts a text into every stream that is open.
func (b *broker) write(text string) {
	b.change(func() { b.raw = append(b.raw, text) })
}

// cut breaks every connection to the broker, and those to come, until mend.
func (b *broker) cut() {
	b.change(func() { b.down = true })
	b.public.CloseClientConnections()
	b.private.CloseClientConnections()
}

func (b *broker) mend() {
	b.change(func() { b.down = false })
}

func (b *broker) handle(path string, h http.HandlerFunc) {
	b.change(func() { b.override[path] = h })
}

// config is a configuration that works.
func (b *broker) config() verify.Config {
	files := b.files
	return verify.Config{
		Issuer: b.public.URL, Audience: audience, Files: &files,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// verifier starts one, which ends with the test.
func (b *broker) verifier(edit func(*verify.Config)) *verify.Verifier {
	b.tb.Helper()
	c := b.config()
	if edit != nil {
		edit(&c)
	}
	v := must(verify.New(within(b.tb, 20*time.Second), c))(b.tb)
	b.tb.Cleanup(func() { _ = v.Close() }) // the last report of usage may find nobody
	return v
}

func (b *broker) peer() *verify.Peer {
	return &verify.Peer{Certificate: b.agent.Leaf, Verified: true}
}

// claims are those of a good token, as JSON members, after edit.
func (b *broker) claims(edit func(map[string]any)) map[string]any {
	now := time.Now().Unix()
	sum := sha256.Sum256(b.agent.Leaf.Raw)
	b.mu.Lock()
	defer b.mu.Unlock()
	c := map[string]any{
		"iss": b.public.URL, "sub": agentID, "client_id": agentID, "aud": audience,
		"iat": now, "exp": now + 60, "jti": grantID, "txn": rootTask, "scope": "orders:read orders:write",
		"task": map[string]any{"id": childTask, "path": []string{rootTask, childTask}, "name": "nightly"},
		"ep":   []uint64{b.position.Epoch, b.position.Numbers[0]},
		"cnf":  map[string]any{"x5t#S256": b64(sum[:])},
	}
	if edit != nil {
		edit(c)
	}
	return c
}

// token signs the claims of a good token, after edit.
func (b *broker) token(edit func(map[string]any)) string {
	b.tb.Helper()
	return b.key.sign(b.tb, wire.TokenType, marshal(b.tb, b.claims(edit)))
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(v); err != nil {
		tb.Fatal(err)
	}
	return bytes.TrimSpace(out.Bytes())
}
