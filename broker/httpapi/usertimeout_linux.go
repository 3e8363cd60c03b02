package httpapi

import (
	"net"

	"golang.org/x/sys/unix"
)

// setUserTimeout (RFC 5482) has the kernel give a connection up whose peer has vanished without a word. It is a help alone:
// a connection that does not take it is found by its timeouts.
func setUserTimeout(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(UserTimeout.Milliseconds()))
	})
}
