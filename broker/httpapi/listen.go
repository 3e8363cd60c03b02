package httpapi

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Bounds of every listener.
const (
	HeaderTimeout = 5 * time.Second // TLS handshake, and request header
	ReadTimeout   = 10 * time.Second
	WriteTimeout  = 15 * time.Second
	IdleTimeout   = 60 * time.Second
	MaxHeader     = 16 << 10 // bytes
	MaxStreams    = 100      // concurrent HTTP/2 streams of one connection
)

// NewServer makes an http.Server with the bounds. connContext may be nil, and so may config for a
// listener without TLS.
func NewServer(h http.Handler, config *tls.Config, connContext func(context.Context, net.Conn) context.Context, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		TLSConfig:         config,
		ConnContext:       connContext,
		ReadHeaderTimeout: HeaderTimeout,
		ReadTimeout:       ReadTimeout,
		WriteTimeout:      WriteTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: MaxStreams},
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
