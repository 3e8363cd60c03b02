package httpapi

import (
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// jwks serves the published keys (RFC 7517) with a strong ETag (RFC 9110 §8.8.3).
func (a *API) jwks(w http.ResponseWriter, r *http.Request) {
	set := a.Keys()
	h := w.Header()
	h.Set("Content-Type", wire.TypeJWKS)
	h.Set("ETag", set.ETag)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(set.MaxAge/time.Second)))
	h.Set("Access-Control-Allow-Origin", "*")
	if sameETag(r.Header.Get("If-None-Match"), set.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if r.Method != http.MethodHead {
		_, _ = w.Write(set.JSON)
	}
}

func sameETag(header, etag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == etag || candidate == "*" {
			return true
		}
	}
	return false
}

// metadata serves the authorization server's metadata (RFC 8414 §3.2). There is no authorization
// endpoint and no grant type to name; response_types_supported is required all the same.
func (a *API) metadata(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", wire.TypeJSON)
	h.Set("Cache-Control", "public, max-age=60")
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodHead {
		return
	}
	writeJSON(w, wire.Metadata{
		Issuer: a.Issuer, JWKSURI: a.Issuer + wire.PathJWKS, ResponseTypes: []string{"none"}, BoundTokens: true,
		Algorithms: []string{a.Algorithm}, Feed: a.BrokerURL + wire.PathFeed, Broker: a.BrokerURL,
	})
}

const style = `body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}code{font-family:ui-monospace,monospace}@media(prefers-color-scheme:dark){body{background:#111;color:#eee}a{color:#8cf}}`

var problemTemplate = template.Must(template.New("problem").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Title}} · Errand</title>
<style>` + style + `</style>
<h1>{{.Title}}</h1>
<p><code>{{.Name}}</code>, HTTP status {{.Status}}</p>
<p>{{.Mend}}</p>
<p><a href="/problems">All problems</a></p>
</html>
`))

var indexTemplate = template.Must(template.New("index").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Problems · Errand</title>
<style>` + style + `</style>
<h1>Problems</h1>
<p>What the broker and its verifiers answer when they refuse, and how to mend it.</p>
<ul>{{range .}}<li><a href="/problems/{{.Name}}">{{.Title}}</a> <code>{{.Name}}</code>, {{.Status}}</li>{{end}}</ul>
</html>
`))

// page is what the templates show of a problem type.
type page struct {
	Title, Name, Mend string
	Status            int
}

func html(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "public, max-age=3600")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
}

// problemIndex lists all problem types.
func (a *API) problemIndex(w http.ResponseWriter, r *http.Request) {
	var pages []page
	for _, row := range problemTypes {
		pages = append(pages, page{row.title, row.name, row.mend, row.status})
	}
	html(w)
	if r.Method != http.MethodHead {
		_ = indexTemplate.Execute(w, pages)
	}
}

// problemPage says what a problem type means and how to mend it.
func (a *API) problemPage(w http.ResponseWriter, r *http.Request) {
	for _, row := range problemTypes {
		if row.name != r.PathValue("name") {
			continue
		}
		html(w)
		if r.Method != http.MethodHead {
			_ = problemTemplate.Execute(w, page{row.title, row.name, row.mend, row.status})
		}
		return
	}
	http.Error(w, "there is no such problem type", http.StatusNotFound)
}

func (a *API) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// readyz says why not, since only the operator's loopback sees it.
func (a *API) readyz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := a.Ready(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "ready")
}
