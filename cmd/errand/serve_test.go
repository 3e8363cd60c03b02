package main

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))

	t.Setenv("NOTIFY_SOCKET", path)
	notify(log, "READY=1")
	text := make([]byte, 64)
	n, err := l.Read(text)
	if err != nil || string(text[:n]) != "READY=1" || out.Len() > 0 {
		t.Errorf("systemd got %q, %v; the log has %q", text[:n], err, &out)
	}

	t.Setenv("NOTIFY_SOCKET", path+"-not-there")
	notify(log, "READY=1")
	if !strings.Contains(out.String(), "systemd could not be told READY=1") {
		t.Errorf("the log has %q", &out)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	notify(log, "READY=1")
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("without systemd, the log has %q", &out)
	}
}
