package sdk_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
)

// realBroker is a whole broker in this process, with a resource server that verifies: what the
// Examples talk to.
type realBroker struct {
	*brokertest.Broker
	client *sdk.Client
	orders string // URL
	socket string // the Workload API of the workload report
	stop   func()
	dirs   []string
}

func (b *realBroker) close() {
	b.stop()
	for _, dir := range b.dirs {
		os.RemoveAll(dir)
	}
}

func sure[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func startReal() *realBroker {
	b, stop := brokertest.Start(brokertest.WithInventory("testdata/inventory.yaml"))
	v := b.Verifier("orders")
	mux := http.NewServeMux()
	mux.Handle("GET /orders", v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "two anvils")
	})))
	mux.Handle("POST /orders", v.Require("orders:write")(http.NotFoundHandler()))
	return &realBroker{
		Broker: b, client: b.Client("report"), orders: b.Serve("orders", mux) + "/orders", socket: b.WorkloadAPI("report"), stop: stop,
	}
}

// with adds where the broker is; in a service the environment says that.
func (b *realBroker) with(opts ...sdk.Option) []sdk.Option {
	return append(opts, sdk.WithBroker(b.URL()), sdk.WithBrokerID(spiffeid.RequireFromString(b.ID())), sdk.WithLogger(slog.New(slog.DiscardHandler)))
}

// folder is a folder with the files of an identity, as something else keeps them.
func (b *realBroker) folder(files func(cert, key, bundle []byte) map[string][]byte) string {
	dir := sure(os.MkdirTemp("", "errand-"))
	b.dirs = append(b.dirs, dir)
	svids, bundles, release, err := sdk.FromWorkloadAPI(b.socket, "").Open(context.Background())
	sure(0, err)
	defer release()
	svid := sure(svids.GetX509SVID())
	cert, key, err := svid.Marshal()
	for name, text := range files(cert, sure(key, err), sure(sure(bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())).Marshal())) {
		sure(0, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return dir
}
