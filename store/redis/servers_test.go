package redis_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// TestTLSAndPasswordBehindOthers has a primary that a Sentinel names, and a node of a cluster: a store speaks TLS to both, also
// to the Sentinel, and logs in.
func TestTLSAndPasswordBehindOthers(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	serverCert, serverKey := ca.leaf(x509.ExtKeyUsageServerAuth)
	cert, key := ca.leaf(x509.ExtKeyUsageClientAuth)
	files := []string{"tls-cert-file", serverCert, "tls-key-file", serverKey, "tls-ca-cert-file", ca.file}
	args := func(port int) []string { // of a server
		list := []string{"--tls-port", fmt.Sprint(port), "--tls-replication", "yes"}
		for i := 0; i < len(files); i += 2 {
			list = append(list, "--"+files[i], files[i+1])
		}
		return list
	}
	for kind, address := range map[string]func(t *testing.T) (*server, string){
		"sentinel": func(t *testing.T) (*server, string) {
			port, own := redistest.FreePort(t), redistest.FreePort(t)
			s := start(t, args(port)...)
			lines := []string{fmt.Sprintf("sentinel monitor secured 127.0.0.1 %d 1", port), "tls-replication yes", fmt.Sprintf("tls-port %d", own)}
			for i := 0; i < len(files); i += 2 {
				lines = append(lines, files[i]+" "+files[i+1])
			}
			sentinel(t, s, lines...)
			return s, fmt.Sprintf("rediss+sentinel://127.0.0.1:%d?master_name=secured&username=errand", own)
		},
		"cluster": func(t *testing.T) (*server, string) {
			port := redistest.FreePort(t)
			return clusterOfOne(t, append(args(port), "--tls-cluster", "yes")...), fmt.Sprintf("rediss+cluster://errand@127.0.0.1:%d", port)
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s, url := address(t)
			s.Must("ACL", "SETUSER", "errand", "on", ">hunter2", "~*", "&*", "+@all")
			c := redis.Config{URL: url, PasswordFile: file(t, "hunter2"), CAFile: ca.file, CertFile: cert, KeyFile: key}.Patient()
			store := openSoon(t, c)
			end(t, store, completing(begin(t, store).Task.ID))
			if list := s.Must("CLIENT", "LIST"); !strings.Contains(list, "user=errand") {
				t.Errorf("nobody has logged in as errand:\n%s", list)
			}
		})
	}
}

// openSoon is open where a Sentinel may not be up yet.
func openSoon(t *testing.T, c redis.Config) *redis.Store {
	t.Helper()
	for last := time.Now().Add(10 * time.Second); time.Now().Before(last); time.Sleep(20 * time.Millisecond) {
		store, err := redis.New(t.Context(), c)
		if err == nil {
			t.Cleanup(func() { _ = store.Close() })
			return store
		}
	}
	return open(t, c)
}

// TestSilentServerBehindOthers: an answer is waited for as long as elsewhere, and not as long as for all round trips together.
func TestSilentServerBehindOthers(t *testing.T) {
	t.Parallel()
	for kind, address := range map[string]func(t *testing.T) (*server, string){
		"sentinel": func(t *testing.T) (*server, string) {
			s := start(t)
			return s, "redis+sentinel://" + sentinel(t, s) + "?master_name=errand"
		},
		"cluster": func(t *testing.T) (*server, string) {
			s := clusterOfOne(t)
			return s, "redis+cluster://" + s.Addr()
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s, url := address(t)
			store := openSoon(t, redis.Config{URL: url})
			eventually(t, "a call that was not waited for as long as for all together", func() bool {
				_, err := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)}) // over a connection
				s.Pause()
				defer s.Resume()
				began := time.Now()
				_, silent := store.Lookup(t.Context(), broker.Ref{Task: broker.NewTaskID(0)})
				took := time.Since(began)
				if silent == nil || errors.Is(silent, broker.ErrNotFound) {
					t.Errorf("a server that is silent has answered: %v", silent)
				}
				return errors.Is(err, broker.ErrNotFound) && took < 800*time.Millisecond
			})
		})
	}
}
