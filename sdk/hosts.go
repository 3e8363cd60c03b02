package sdk

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// allowed refuses what a token must not be sent to.
func allowed(req *http.Request, audience string, hosts []string) error {
	named := *req.URL
	if req.Host != "" {
		named.Host = req.Host
	}
	for _, u := range []*url.URL{req.URL, &named} {
		if !listed(hosts, u) {
			return fmt.Errorf("sdk: %w: the hosts of %s are %q, and %s is none of them; add it to the registration of the audience", ErrHost, audience, hosts, hostPort(u))
		}
	}
	return nil
}

// wandered reports whether a chain of redirects has been at another host, also if it is back: that
// one has chosen the request.
func wandered(req *http.Request) bool {
	here := hostPort(req.URL)
	for req.Response != nil && req.Response.Request != nil {
		if req = req.Response.Request; hostPort(req.URL) != here {
			return true
		}
	}
	return false
}

// hostPort is the host of a URL in lower case with its port, also where that is the default.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// listed looks a URL up in hosts as the broker names them: host or host:port, where no port is 443.
func listed(hosts []string, u *url.URL) bool {
	want := hostPort(u)
	for _, host := range hosts {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), "443"
		}
		if net.JoinHostPort(strings.ToLower(name), port) == want {
			return true
		}
	}
	return false
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
