// Command echo is sdk/examples/orders with echo. With errand dev running, and what errand dev env orders
// prints in the environment, run it; it serves on 127.0.0.1:8082.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyecho"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

var listen = flag.String("listen", "127.0.0.1:8082", "the address to serve on; errand dev lets tokens be sent to the default")

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	for _, name := range []string{"SPIFFE_ENDPOINT_SOCKET", "ERRAND_BROKER_ID", "ERRAND_ISSUER"} {
		if os.Getenv(name) == "" {
			return fmt.Errorf(`%s is not set: start errand dev, and run  eval "$(./errand dev env orders)"`, name)
		}
	}
	starting, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(starting)
	if err != nil {
		return err
	}
	defer source.Close()
	broker, err := verifyspiffe.TLS(source, os.Getenv("ERRAND_BROKER_ID"))
	if err != nil {
		return err
	}
	v, err := verify.New(starting, verify.Config{Issuer: os.Getenv("ERRAND_ISSUER"), Audience: "orders", TLS: broker})
	if err != nil {
		return err
	}
	defer v.Close()

	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with -listen", err)
	}
	server := &http.Server{Handler: routes(v), TLSConfig: config, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	log.Printf("orders is at https://%s/orders", l.Addr())
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func routes(v *verify.Verifier) http.Handler {
	e := echo.New()
	e.GET("/orders", list, verifyecho.Require(v, "orders:read"))
	return e
}

func list(c echo.Context) error {
	grant := verifyecho.Grant(c)
	return c.String(http.StatusOK, fmt.Sprintf("two anvils, for %s in task %s\n", grant.Workload, grant.Task.Name))
}
