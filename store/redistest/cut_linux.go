package redistest

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// Cut has the kernel drop whatever comes to a connection of the test's, before it would acknowledge it. For the peer
// that is a cable that is cut: it hears nothing any more, not even that nobody is there.
func Cut(t testing.TB, c net.Conn) {
	t.Helper()
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T is no TCP connection", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0} // is kept of a packet
	filter := unix.SockFprog{Len: 1, Filter: &nothing}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter)
	})
	if err != nil || refused != nil {
		t.Fatal(err, refused)
	}
}
