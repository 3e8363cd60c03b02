package broker

import (
	"context"
	"time"
)

const (
	recordingKind = "recording" // of notes on the Board: what each process has recorded

	// tellInterval is how often a process tells what it has recorded while it writes ends, and tellIdle while it has
	// nothing to tell.
	tellInterval = time.Second
	tellIdle     = 4 * time.Second

	// progressLife is how long one is known that has gone. The store has nothing older to complete.
	progressLife = MaxTokenLife + Margin
)

// progress is a note about how far a process has recorded the ends that it has written.
type progress struct {
	Open    uint32 `json:"o"`           // the events of earlier rounds are in its log,
	Pending uint32 `json:"p"`           // but for those of ends that are pending since this round, at the earliest
	Round   uint32 `json:"r"`           // the one that it is in
	Closed  bool   `json:"c,omitempty"` // it has stopped
}

func (p progress) done() bool { return p.Open == p.Round && p.Pending == p.Round }

// note is the progress for the Board.
func (p progress) note(maker string, life time.Duration) BoardNote {
	return BoardNote{Kind: recordingKind, ID: maker, Text: plainJSON(p), Life: life}
}

// progress is this process's own, as of now. An end goes from those under way over the pending ones into the backlog,
// and they are looked at in this order, so that none is missed on its way.
func (b *Broker) progress() (p progress, news bool) {
	p.Round, p.Open, news = b.rounds.turn()
	p.Pending = p.Round
	for _, end := range b.pending.unwritten() {
		if round, ok := roundOf(b.rounds.maker, end.Event); ok {
			p.Pending = min(p.Pending, round)
		}
	}
	p.Open = min(p.Open, b.backlog.oldestRound(b.rounds.maker, p.Round))
	return p, news || !p.done()
}

// tellProgress tells the other replicas what this one has recorded, until ctx ends.
func (b *Broker) tellProgress(ctx context.Context) error {
	away := Fault{Logger: b.Logger, What: "the other replicas cannot be told what is recorded here; ends that they complete may be recorded twice", Over: "the other replicas are told again what is recorded here"}
	var told time.Time
	for {
		p, news := b.progress()
		if news || b.Now().Sub(told) >= tellIdle {
			switch err := b.post(ctx, p.note(b.rounds.maker, progressLife)); {
			case err == nil:
				told = b.Now()
				away.Ended(told)
			case ctx.Err() == nil:
				away.Met(b.Now(), err)
			}
		}
		if pause(ctx, tellInterval); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// tellLast says that this process has stopped, and takes its note down when nothing is left to complete.
func (b *Broker) tellLast(ctx context.Context) {
	p, _ := b.progress()
	p.Closed = true
	life := progressLife
	if p.done() {
		life = time.Millisecond
	}
	if err := b.post(context.WithoutCancel(ctx), p.note(b.rounds.maker, life)); err != nil {
		b.Logger.Warn("the other replicas could not be told that this one has stopped; they find out by themselves", "error", err)
	}
}

func (b *Broker) post(ctx context.Context, notes ...BoardNote) error {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	return b.Board.Post(ctx, notes...)
}
