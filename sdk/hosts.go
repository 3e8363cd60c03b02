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

// CheckHost returns ErrHost for a URL that the token must not be sent to: it is neither https, nor http
// to a loopback address, or its host is none of Hosts. HTTPClient and Transport look by themselves.
func (t Token) CheckHost(u *url.URL) error {
	if err := secure(u); err != nil {
		return err
	}
	return allowed(&http.Request{URL: u}, t.Audience, t.Hosts)
}

// secure refuses to send a token where others could read it.
func secure(u *url.URL) error {
	if u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
		return fmt.Errorf("sdk: %w: %s://%s; a token is sent over https only, or over http to a loopback address", ErrHost, u.Scheme, u.Host)
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
