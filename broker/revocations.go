package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
)

// record writes the event of the whole, and puts the record where operators find it.
func (r *running) record(ctx context.Context) {
	done := r.MassRevocation
	r.hand(ctx, []Event{{ID: r.Event, Kind: EventApplied, Time: r.At, Cause: CauseOperator, Mass: &done}})
	text, err := json.Marshal(r.MassRevocation)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, storeTry)
		defer cancel()
		err = r.b.Board.Post(ctx, BoardNote{Kind: revocationKind, ID: string(r.ID), Text: text, Life: RevocationLife})
	}
	if err != nil {
		r.b.Logger.Error("a revocation is in force, and its record could not be kept; the audit log has it", "revocation", string(r.ID), "error", err)
	}
}

// Revocations returns so many of the records of the last day, DefaultPageSize for 0, from after one of them on, and the last
// one's ID if there are more. The newest are first. Errors: ErrInvalid for an ID that is not there any more, and those of
// the Board.
func (b *Broker) Revocations(ctx context.Context, size int, after RevocationID) (page []MassRevocation, next RevocationID, err error) {
	all, err := b.revocations(ctx)
	if err != nil {
		return nil, "", err
	}
	if after != "" {
		i := slices.IndexFunc(all, func(r MassRevocation) bool { return r.ID == after })
		if i < 0 {
			return nil, "", invalid("cursor", "is none of this list, or of a page that is no more; send none to begin again")
		}
		all = all[i+1:]
	}
	if size == 0 {
		size = DefaultPageSize
	}
	if len(all) > size {
		return all[:size], all[size-1].ID, nil
	}
	return all, "", nil
}

func (b *Broker) revocations(ctx context.Context) ([]MassRevocation, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	notes, err := b.Board.Notes(ctx, revocationKind)
	if err != nil {
		return nil, err
	}
	var out []MassRevocation
	for _, note := range notes {
		var r MassRevocation
		if err := json.Unmarshal(note.Text, &r); err != nil {
			b.Logger.Error("the record of a revocation cannot be read; the audit log has it", "revocation", note.ID, "error", err)
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(r, s MassRevocation) int {
		return cmp.Or(s.At.Compare(r.At), cmp.Compare(r.ID, s.ID))
	})
	return out, nil
}

// FindRevocation returns one of them. Errors: ErrNotFound and those of the store.
func (b *Broker) FindRevocation(ctx context.Context, id RevocationID) (MassRevocation, error) {
	all, err := b.revocations(ctx)
	if err != nil {
		return MassRevocation{}, err
	}
	i := slices.IndexFunc(all, func(r MassRevocation) bool { return r.ID == id })
	if i < 0 {
		return MassRevocation{}, ErrNotFound
	}
	return all[i], nil
}
