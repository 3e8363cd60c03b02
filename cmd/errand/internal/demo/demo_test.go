package demo_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortDir is a folder whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "errand-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestTour: every step holds, in order, also for somebody who reads slowly, and nothing is left
// running.
func TestTour(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var names []string
	ok, err := demo.Tour(ctx, shortDir(t), func(s demo.Step) {
		names = append(names, s.Name)
		time.Sleep(demo.Bound + demo.Bound/10)
		if !s.OK || s.Detail == "" || s.Took <= 0 {
			t.Errorf("%+v", s)
		}
	})
	if !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if got := strings.Join(names, " "); got != "identities task token use done reuse theft" {
		t.Errorf("the steps are %s", got)
	}
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]demo.Config{
		"not loopback":       {WorkloadAddr: "0.0.0.0:0"},
		"a host name":        {OrdersAddr: "localhost:0"},
		"no port":            {OpsAddr: "127.0.0.1"},
		"a path as identity": {Identities: []string{"a/b"}},
		"a space":            {Identities: []string{"a b"}},
		"the broker's name":  {Identities: []string{demo.BrokerName}},
		"the same twice":     {Identities: []string{"a", "a"}},
		"address in use":     {OrdersAddr: "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			c.Dir = shortDir(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if name == "address in use" {
				busy, err := demo.Start(ctx, demo.Config{Dir: shortDir(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer busy.Close()
				c.WorkloadAddr, c.OrdersAddr = strings.TrimPrefix(busy.BrokerURL, "https://"), ""
			}
			l, err := demo.Start(ctx, c)
			if err == nil {
				l.Close()
				t.Error("accepted")
			}
		})
	}
	if _, err := demo.Describe(t.TempDir()); !errors.Is(err, demo.ErrNotRunning) {
		t.Errorf("an empty folder: %v", err)
	}
}
