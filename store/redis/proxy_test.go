package redis_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// holding is a way to a server on which a connection goes silent when a text passes; held counts them.
func holding(t *testing.T, target, text string) (address string, held *atomic.Int32) {
	t.Helper()
	held = new(atomic.Int32)
	return between(t, target, func() func([]byte) ([]byte, bool) {
		silent := false
		return func(sent []byte) ([]byte, bool) {
			if !silent && bytes.Contains(sent, []byte(text)) {
				silent = true
				held.Add(1)
			}
			return nil, !silent
		}
	}), held
}

// between is a way to a server on which somebody listens. For each connection meet makes a function
// that is given what the client sends, and says what it is told instead, or that the server gets it.
func between(t *testing.T, target string, meet func() func([]byte) ([]byte, bool)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			hear := meet()
			all.Go(func() {
				defer func() { _ = client.Close() }()
				_, _ = io.Copy(client, server)
			})
			all.Go(func() {
				defer func() { _ = server.Close() }()
				buffer := make([]byte, 64<<10)
				for {
					n, err := client.Read(buffer)
					if err != nil {
						return
					}
					answer, pass := hear(buffer[:n])
					if _, err := client.Write(answer); err != nil {
						return
					}
					if !pass {
						continue
					}
					if _, err := server.Write(buffer[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}
