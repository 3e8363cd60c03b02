package verify_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
)

// firstLine ends a start as soon as something is logged.
type firstLine struct {
	mu   sync.Mutex
	text bytes.Buffer
	stop func()
}

func (f *firstLine) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	return f.text.Write(p)
}

// TestAStartThatWaitsSaysSo: who has given no deadline must not look at silence.
func TestAStartThatWaitsSaysSo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log := &firstLine{stop: cancel}
	_, err := verify.New(ctx, verify.Config{
		Issuer: "https://127.0.0.1:1", Audience: "orders", TLS: &tls.Config{GetClientCertificate: noCertificate}, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("the error is %v", err)
	}
	if text := log.text.String(); !strings.Contains(text, "still waiting for the broker") || !strings.Contains(text, "connection refused") {
		t.Errorf("the log has %q", text)
	}
}

func noCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return &tls.Certificate{}, nil
}
