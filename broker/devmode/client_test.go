package devmode_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestIdentitiesTalkToEachOther: one serves, the other calls, each with what Open gave it.
func TestIdentitiesTalkToEachOther(t *testing.T) {
	ca, err := devmode.NewCA("dev.test", devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "errand-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	api := devmode.NewWorkloadAPI(ca, dir, time.Hour)
	open := func(name string) *devmode.Identity {
		t.Helper()
		addr, err := api.Add(spiffeid.RequireFromString("spiffe://dev.test/" + name))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		who, err := devmode.Open(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { who.Close() })
		return who
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	t.Cleanup(func() { cancel(); <-done })
	go func() { done <- api.Run(ctx) }()
	server, client := open("server"), open("client")
	l, err := tls.Listen("tcp", "127.0.0.1:0", server.ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.TLS.PeerCertificates[0].URIs[0].String())
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })

	transport := &http.Transport{TLSClientConfig: client.ClientTLS()}
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != client.ID().String() {
		t.Errorf("the server saw %s", body)
	}
	checkFiles(t, client, l.Addr())
}

// checkFiles makes the same call as curl would: with the files, and the host name checked.
func checkFiles(t *testing.T, who *devmode.Identity, addr net.Addr) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "new", "folder")
	for range 2 { // the second time over what is there
		files, err := who.WriteFiles(out)
		if err != nil || len(files) != 3 {
			t.Fatalf("%v, %v", files, err)
		}
	}
	for _, name := range []string{"svid.pem", "svid_key.pem", "svid_bundle.pem"} {
		if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(out, "svid.pem"), filepath.Join(out, "svid_key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(filepath.Join(out, "svid_bundle.pem"))
	if err != nil || strings.Count(string(bundle), "BEGIN CERTIFICATE") != 1 {
		t.Fatalf("%s, %v", bundle, err)
	}
	config := who.ClientTLS()
	config.GetClientCertificate, config.Certificates = nil, []tls.Certificate{cert}
	conn, err := tls.Dial("tcp", addr.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname("127.0.0.1"); err != nil {
		t.Errorf("curl would refuse the server: %v", err)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := devmode.Open(ctx, "unix:///nowhere/at/all.sock"); err == nil || !strings.Contains(err.Error(), "errand dev") {
		t.Error(err)
	}
}
