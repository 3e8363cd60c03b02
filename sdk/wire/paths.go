package wire

// Paths of the workload listener (mutual TLS with an X.509-SVID).
const (
	PathWhoami       = "/v1/whoami"
	PathTasks        = "/v1/tasks"                  // POST: begin
	PathTask         = "/v1/tasks/{id}"             // GET
	PathTaskChildren = "/v1/tasks/{id}/children"    // POST: begin a task below it
	PathTaskTokens   = "/v1/tasks/{id}/tokens"      // POST: issue
	PathTaskEnd      = "/v1/tasks/{id}/end"         // POST; on the public listener with "Authorization: EndKey …"
	PathTaskAdopt    = "/v1/tasks/{id}/adopt"       // POST: hold the task from now on
	PathDelegations  = "/v1/tasks/{id}/delegations" // POST: let another workload join
	PathJoins        = "/v1/joins"                  // POST: begin a task below another workload's
	PathHeartbeats   = "/v1/heartbeats"             // POST
	PathEvents       = "/v1/events"                 // GET: server-sent events; ?task=ID or ID:HOLDER, up to MaxFollowed times
	PathGrant        = "/v1/grants/{id}"            // GET
	PathFeed         = "/v1/feed"                   // GET: server-sent events; ?aud=
	PathFeedSnapshot = "/v1/feed/snapshot"          // GET; ?aud=
	PathFeedPosition = "/v1/feed/position"          // GET; ?nonce=
	PathFeedUsage    = "/v1/feed/usage"             // POST; ?aud=
	PathFeedAcks     = "/v1/feed/acks"              // POST; ?aud=
	PathCloudEvents  = "/v1/hooks/cloudevents"      // POST: something outside has ended; on the public listener with a bearer token
)

// Paths of the public listener (server TLS). The metadata path is inserted between the issuer's
// host and its path (RFC 8414 §3.1).
const (
	PathMetadata = "/.well-known/oauth-authorization-server"
	PathJWKS     = "/.well-known/jwks.json"
	PathProblem  = "/problems/{name}"
	PathProblems = "/problems"
)

// Header names.
const (
	HeaderIdempotencyKey = "Idempotency-Key"
	HeaderRequestID      = "X-Request-Id"
	HeaderLastEventID    = "Last-Event-ID"
	HeaderStream         = "Errand-Stream" // of the answer of PathEvents: for HeartbeatRequest.Stream
)

// Media types.
const (
	TypeJSON    = "application/json"
	TypeProblem = "application/problem+json" // RFC 9457 §3
	TypeJWKS    = "application/jwk-set+json" // RFC 7517 §8.5.1
	TypeEvents  = "text/event-stream"
)

// Events of the streams. Those of the feed carry a FeedEvent, and the position as the event's id; those of
// PathEvents a TaskEnded, or an empty object.
const (
	EventDenials   = "denials"    // the feed has something new
	EventTaskEnded = "task.ended" // a task of the caller's is over
	EventBeat      = "beat"       // nothing new; at least every second
	EventReset     = "reset"      // this stream is over: connect again, elsewhere if you can
)

// TokenType is the typ header of an access token (RFC 9068 §2.1).
const TokenType = "at+jwt"

// MaxTokenBytes is the longest token that the broker makes, and that a verifier looks at.
const MaxTokenBytes = 8 << 10
