package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/labstack/echo/v4"
)

// router adapts the handlers of this package to echo. No other file knows the framework.
type router struct {
	api      *API
	listener string
	echo     *echo.Echo
	routes   map[string]bool     // by echo's path
	names    map[string]bool     // by method and path, as the API has it
	guard    echo.MiddlewareFunc // of the routes that are added, before their bodies are read; nil for none

	admission *admission       // nil for a listener without
	kind      string           // of the routes that are added
	kinds     map[route]string // of those that are there
}

// route is a method with echo's path.
type route struct{ method, path string }

type (
	workloadKey struct{}
	operatorKey struct{}
)

// router makes the routes' home. identify, when set, runs before anything of the request is read.
func (a *API) router(listener string, identify echo.MiddlewareFunc) *router {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	// The peer's address comes from the connection alone: no header is believed.
	e.IPExtractor = echo.ExtractIPDirect()
	r := &router{api: a, listener: listener, echo: e, routes: map[string]bool{}, names: map[string]bool{}, kinds: map[route]string{}}
	e.HTTPErrorHandler = r.fail
	e.Use(r.requestID, r.observe, r.recover)
	if identify != nil {
		e.Use(identify)
	}
	return r
}

func (r *router) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	r.echo.ServeHTTP(w, req)
}

func get[Answer any](r *router, path string, h handler[none, Answer]) { getOrWatch(r, path, h, nil) }

// getOrWatch is get for what can also be watched: then watch, unless it is nil, writes the answer.
func getOrWatch[Answer any](r *router, path string, h handler[none, Answer], watch func(http.ResponseWriter, *http.Request, broker.Operator) error) {
	h = within(r, h)
	r.add(http.MethodGet, path, func(c echo.Context) error {
		if watch != nil && wantsEvents(c.Request().Header) {
			return watch(c.Response(), c.Request(), operatorOf(c.Request().Context()))
		}
		answer, err := h(c.Request().Context(), newRequest(c, none{}))
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, answer)
	})
}

// wantsEvents reports whether an Accept header names the media type of server-sent events.
func wantsEvents(h http.Header) bool {
	for _, value := range h.Values("Accept") {
		for part := range strings.SplitSeq(value, ",") {
			if media, _, err := mime.ParseMediaType(part); err == nil && media == wire.TypeEvents {
				return true
			}
		}
	}
	return false
}

func post[Body, Answer any](r *router, path string, status int, h handler[Body, Answer]) {
	h = within(r, h)
	r.add(http.MethodPost, path, func(c echo.Context) error {
		var body Body
		if err := read(c, &body); err != nil {
			return err
		}
		if waits, ok := any(body).(interface{ wait() time.Duration }); ok {
			if err := outlast(c.Response(), waits.wait()); err != nil {
				return err
			}
		}
		req := newRequest(c, body)
		var err error
		if req.Key, err = idempotencyKey(c.Request().Header); err != nil {
			return err
		}
		answer, err := h(c.Request().Context(), req)
		if err != nil {
			return err
		}
		if located, ok := any(answer).(interface{ location() string }); ok && located.location() != "" {
			c.Response().Header().Set("Location", located.location())
		}
		code := status // of this answer; the route's is everybody's
		if told, ok := any(answer).(interface{ status() int }); ok {
			code = told.status()
		}
		if code == http.StatusNoContent {
			return c.NoContent(code)
		}
		return c.JSON(code, answer)
	})
}

// read decodes a body: as JSON, unless it knows better, of MaxBody bytes, unless it has a limit of its own.
func read[Body any](c echo.Context, body *Body) error {
	if _, empty := any(*body).(none); empty && c.Request().ContentLength == 0 {
		return nil
	}
	if custom, ok := any(body).(interface {
		read(http.ResponseWriter, *http.Request) error
	}); ok {
		return custom.read(c.Response(), c.Request())
	}
	limit := int64(MaxBody)
	if large, ok := any(*body).(interface{ limit() int64 }); ok {
		limit = large.limit()
	}
	return decode(c.Response(), c.Request(), limit, body)
}

// outlast gives an answer that is waited for as much more time. The body has been read, and what reads on finds out
// that the caller has gone.
func outlast(w http.ResponseWriter, wait time.Duration) error {
	if wait <= 0 || wait > broker.MaxWait {
		return nil
	}
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return control.SetWriteDeadline(time.Now().Add(wait + WriteTimeout))
}

// remove answers a DELETE, which has no body.
func remove(r *router, path string, h handler[none, none]) {
	r.add(http.MethodDelete, path, func(c echo.Context) error {
		if _, err := h(c.Request().Context(), newRequest(c, none{})); err != nil {
			return err
		}
		return c.NoContent(http.StatusNoContent)
	})
}

// stream and raw are for handlers that write the answer themselves.
func (r *router) stream(path string, h func(http.ResponseWriter, *http.Request, broker.Workload) error) {
	r.add(http.MethodGet, path, func(c echo.Context) error {
		return h(c.Response(), c.Request(), workloadOf(c.Request().Context()))
	})
}

func (r *router) raw(path string, h http.HandlerFunc) {
	adapted := func(c echo.Context) error {
		if name := c.Param("name"); name != "" {
			c.Request().SetPathValue("name", name)
		}
		h(c.Response(), c.Request())
		return nil
	}
	r.add(http.MethodGet, path, adapted)
	r.add(http.MethodHead, path, adapted)
}

func newRequest[Body any](c echo.Context, body Body) request[Body] {
	return request[Body]{
		Workload: workloadOf(c.Request().Context()), Operator: operatorOf(c.Request().Context()), ID: c.Param("id"), Body: body,
		Query: c.QueryParam, RawQuery: c.Request().URL.RawQuery,
		Leave: func() {},
	}
}

func workloadOf(ctx context.Context) broker.Workload {
	w, _ := ctx.Value(workloadKey{}).(broker.Workload)
	return w
}

func operatorOf(ctx context.Context) broker.Operator {
	o, _ := ctx.Value(operatorKey{}).(broker.Operator)
	return o
}

// add registers a route; "{id}" in a path is ":id" to echo.
func (r *router) add(method, path string, h echo.HandlerFunc) {
	r.names[method+" "+path] = true
	path = strings.NewReplacer("{", ":", "}", "").Replace(path)
	if r.guard != nil {
		h = r.guard(h)
	}
	r.echo.Add(method, path, h)
	r.routes[path] = true
	r.kinds[route{method, path}] = r.kind
}

// guarded is the same router for routes of a kind, of whose requests nothing more is read before admit lets them in. It
// returns the request for the handler, and what takes the admission back.
func (r *router) guarded(kind string, admit func(*http.Request) (*http.Request, func(), error)) *router {
	guarded := *r
	guarded.admission, guarded.kind = r.api.admission, kind
	guarded.guard = func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			req, leave, err := admit(c.Request())
			if err != nil {
				return err
			}
			defer leave()
			c.SetRequest(req)
			return next(c)
		}
	}
	return &guarded
}

// forRole is the same router for routes that need a role.
func (r *router) forRole(least broker.Role) *router {
	guarded := *r
	guarded.guard = func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if o := operatorOf(c.Request().Context()); o.Role < least {
				err := &roleNeeded{by: o, needs: least}
				r.api.Broker.RefuseOperator(o, fmt.Errorf("%s %s: %w", c.Request().Method, c.Path(), err))
				return err
			}
			return next(c)
		}
	}
	return &guarded
}

// Routes are what the router answers, each as "GET /v1/tasks/{id}", sorted.
func (r *router) Routes() []string {
	return slices.Sorted(maps.Keys(r.names))
}

// identify refuses a request whose peer is nobody, before anything of it is read.
func (a *API) identify(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		w, err := a.Identify(c.Request())
		if err != nil {
			return &unauthenticated{err}
		}
		ctx := context.WithValue(c.Request().Context(), workloadKey{}, w)
		c.SetRequest(c.Request().WithContext(ctx))
		return next(c)
	}
}

// identifyOperator is identify for the operator listener. A workload that is no operator is one without a role.
func (a *API) identifyOperator(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		o, err := a.IdentifyOperator(c.Request())
		if err != nil {
			return &unauthenticated{err}
		}
		o.Role = a.Operators[o.Name]
		ctx := context.WithValue(c.Request().Context(), operatorKey{}, o)
		c.SetRequest(c.Request().WithContext(ctx))
		return next(c)
	}
}

// admit refuses a request that is over its sender's rate, before its body is read.
func (r *router) admit(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		kind := cmp.Or(r.kinds[route{c.Request().Method, c.Path()}], kindOther)
		if err := r.api.withinRate(kind, workloadOf(c.Request().Context()).ID, 1); err != nil {
			return err
		}
		return next(c)
	}
}

func (r *router) requestID(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := c.Request().Header.Get(wire.HeaderRequestID)
		if !isRequestID(id) {
			id = "req_" + strings.ToLower(rand.Text())
		}
		c.Response().Header().Set(wire.HeaderRequestID, id)
		return next(c)
	}
}

// isRequestID allows what can be logged and echoed as it is, and is too short to be a token.
func isRequestID(s string) bool {
	return len(s) > 0 && len(s) <= 64 && !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	})
}

// observe logs and counts a request by its route, never by its path, query or body: those may hold
// anything that somebody typed.
func (r *router) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		if err := next(c); err != nil {
			c.Error(err)
		}
		route := c.Path()
		if !r.routes[route] {
			route = "unknown" // echo's path is then what was typed
		}
		took := time.Since(start)
		r.api.Observe(r.listener, route, c.Request().Method, c.Response().Status, took)
		r.api.Logger.Debug("request", "listener", r.listener, "route", route, "status", c.Response().Status,
			"took", took, "workload", workloadOf(c.Request().Context()).ID.String(), "operator", operatorOf(c.Request().Context()).Name,
			"request_id", c.Response().Header().Get(wire.HeaderRequestID))
		return nil
	}
}

// recover turns a panic into one failed request.
func (r *router) recover(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if e, ok := p.(error); ok && errors.Is(e, http.ErrAbortHandler) {
				panic(p)
			}
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}()
		return next(c)
	}
}

// fail answers an error, once.
func (r *router) fail(err error, c echo.Context) {
	if c.Response().Committed {
		// Part of an answer is out: cut the connection, so that nobody takes it for the whole.
		r.api.Logger.Error("an answer broke off", "listener", r.listener, "route", c.Path(), "error", err)
		panic(http.ErrAbortHandler)
	}
	problem, header := r.api.problem(fromEcho(err))
	problem.RequestID = c.Response().Header().Get(wire.HeaderRequestID)
	if problem.Status >= http.StatusInternalServerError {
		r.api.logFailure(err, problem, c.Path())
	}
	for name, value := range header {
		c.Response().Header().Set(name, value)
	}
	if problem.Status == http.StatusUnauthorized {
		// The verdict is on the connection's certificate: another one needs another connection.
		c.Response().Header().Set("Connection", "close")
	}
	c.Response().Header().Set(echo.HeaderContentType, wire.TypeProblem)
	c.Response().WriteHeader(problem.Status)
	if c.Request().Method != http.MethodHead {
		writeJSON(c.Response(), problem)
	}
}

// newLasting has what every request meets while it lasts. The log has it now and then; when it is over is for
// the loops of the broker to say, since they ask all the time.
func newLasting(logger *slog.Logger) map[string]*broker.Fault {
	faults := map[string]*broker.Fault{}
	for _, name := range []string{wire.ProblemStoreUnavailable, wire.ProblemAuditUnavailable, wire.ProblemOverloaded} {
		faults[name] = &broker.Fault{Logger: logger, What: "requests fail"}
	}
	return faults
}

// logFailure logs an error that is not the caller's.
func (a *API) logFailure(err error, p wire.Problem, route string) {
	level := slog.LevelError
	about := []any{"route", route, "status", p.Status, "request_id", p.RequestID}
	if fault := a.lasting[path.Base(p.Type)]; fault != nil {
		level = slog.LevelDebug
		fault.Met(a.Now(), err, about...)
	}
	a.Logger.Log(context.Background(), level, "request failed", append(about, "error", err)...)
}

// fromEcho translates the framework's own errors.
func fromEcho(err error) error {
	var he *echo.HTTPError
	if !errors.As(err, &he) {
		return err
	}
	switch he.Code {
	case http.StatusNotFound:
		return errRoute
	case http.StatusMethodNotAllowed:
		return errMethod
	}
	return err
}
