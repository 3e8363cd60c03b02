//go:build !linux

package httpapi

import "net"

func setUserTimeout(net.Conn) {}
