package verify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// MetadataPath is where a resource's metadata is: followed by the path of Config.Resource, if that has
// one (RFC 9728 §3.1).
const MetadataPath = "/.well-known/oauth-protected-resource"

// metadataAge is how long metadata may be cached.
const metadataAge = 300 // seconds

// resource is the metadata of a protected resource (RFC 9728 §2).
type resource struct {
	Resource    string   `json:"resource"`
	Issuers     []string `json:"authorization_servers"`
	Methods     []string `json:"bearer_methods_supported"`
	Scopes      []string `json:"scopes_supported,omitempty"`
	BoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
}

// Metadata serves the metadata of this resource server (RFC 9728): who issues its tokens, how they are
// sent, and that they are bound to certificates. Clients of the Model Context Protocol look for it. Mount
// it at MetadataPath; the challenge of a 401 names the place. It panics without Config.Resource.
func (v *Verifier) Metadata() http.Handler {
	if v.metadata == "" {
		panic("verify: Metadata needs Config.Resource, the URL of this resource server")
	}
	body, err := json.Marshal(resource{
		Resource: v.config.Resource, Issuers: []string{v.config.Issuer}, Methods: []string{"header"},
		Scopes: v.config.Scopes, BoundTokens: v.config.Binding != Unbound,
	})
	if err != nil {
		panic(fmt.Sprintf("verify: metadata of plain values must marshal: %v", err))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", fmt.Sprintf("public, max-age=%d", metadataAge))
		_, _ = w.Write(body)
	})
}

// metadataURL inserts the well-known path between the resource's host and its path, of which a slash
// alone is none.
func metadataURL(of string) string {
	u, err := url.Parse(of)
	if err != nil {
		return "" // it was checked before
	}
	path := u.EscapedPath()
	if path == "/" {
		path = ""
	}
	return strings.Join([]string{u.Scheme, "://", u.Host, MetadataPath, path}, "")
}
