package wire

// What PathCloudEvents takes: CloudEvents 1.0 in the HTTP protocol binding, as one structured event
// (TypeCloudEvent), one binary one (TypeJSON, with Ce- headers), or up to MaxCloudEvents of them
// (TypeCloudEvents).
const (
	TypeCloudEvent  = "application/cloudevents+json"
	TypeCloudEvents = "application/cloudevents-batch+json"

	CloudEventsVersion = "1.0" // the specversion
)

// TypeRefEnded is the type of the events that say that something has ended, whose data is a RefEnded. Others
// are refused.
const TypeRefEnded = "errand.ref.ended"

// Limits of what PathCloudEvents takes. One more is refused.
const (
	MaxCloudEvents     = 100       // events of a batch
	MaxCloudEventBytes = 64 << 10  // of one event
	MaxCloudEventBatch = 256 << 10 // bytes of a batch
	MaxCloudEventText  = 256       // bytes of an ID, and of a source
)

// CloudEvent is one in structured mode. Further attributes may be there, and are not looked at.
type CloudEvent struct {
	SpecVersion string   `json:"specversion"` // CloudEventsVersion
	ID          string   `json:"id"`
	Source      string   `json:"source"`         // as the sender's registration has it
	Type        string   `json:"type"`           // TypeRefEnded
	Time        string   `json:"time,omitempty"` // when it ended (RFC 3339); what began later is not touched
	Data        RefEnded `json:"data"`
}

// RefEnded says that what a reference names has ended: the live tasks that carry it do, too.
type RefEnded struct {
	Ref     Ref    `json:"ref"`              // its URL is not looked at
	Outcome string `json:"outcome"`          // StateCompleted, StateFailed or StateCanceled
	Reason  string `json:"reason,omitempty"` // at most 1024 bytes, for the audit log
}

// RefEndedResults is the answer to events, in their order. That of a single one that was refused is its Problem.
type RefEndedResults struct {
	Events []RefEndedResult `json:"events"`
}

// RefEndedResult is what an event has done.
type RefEndedResult struct {
	ID      string   `json:"id"`
	Ended   int      `json:"ended"`             // tasks that this delivery of it has ended; those below them not counted
	Problem *Problem `json:"problem,omitempty"` // in a batch: why it has done nothing, or not all; after 503 repeat it
}
