package httpapi

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAPeerThatVanishesIsFound: every connection that is accepted has the kernel's bound.
func TestAPeerThatVanishesIsFound(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limits := Limits{}
	if err := limits.Complete(); err != nil {
		t.Fatal(err)
	}
	l := Bound(raw, limits, func(string) {})
	defer l.Close()
	client, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	tcp, ok := bounded(accepted).Conn.(*net.TCPConn)
	if !ok {
		t.Fatal("no TCP")
	}
	control, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ms := 0
	if err := control.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil {
		t.Fatal(err)
	}
	if err != nil || int64(ms) != UserTimeout.Milliseconds() {
		t.Errorf("%d ms, %v; want %s", ms, err, UserTimeout)
	}
}
