package sdk_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// TestP4_AnEndThatIsNotDurableIsSaid, and is not asked for again: the broker has taken it over.
func TestP4_AnEndThatIsNotDurableIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		tries := 0
		f.on(end, func(w http.ResponseWriter, r *http.Request) {
			if tries++; tries == 1 {
				away(w, r) // and then it finds room
				return
			}
			reply(w, http.StatusAccepted, wire.Receipt{Event: "evt_1", Task: task.ID(), State: wire.StateCompleted})
		})
		receipt, err := task.Complete(t.Context())
		if err != nil || receipt.Durable || receipt.Event != "evt_1" || receipt.State != sdk.Completed {
			t.Errorf("got %+v, %v", receipt, err)
		}
		time.Sleep(time.Minute)
		calls := f.got(end)
		if len(calls) != 2 {
			t.Errorf("the broker was asked %d times", len(calls))
		}
		for _, c := range calls {
			if !strings.Contains(string(c.body), endKeyOf(task.ID())) {
				t.Errorf("an end without its key: %s", c.body)
			}
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			if text := fmt.Sprintf(verb, task); text != "task "+task.ID() {
				t.Errorf("%s prints %q", verb, text)
			}
			if text := fmt.Sprintf(verb, client); text != "errand client of "+client.ID().String() {
				t.Errorf("%s prints %q", verb, text)
			}
		}
	})
}

func TestEndKeyIsTheBrokers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		if task := begin(t, client, spec); task.EndKey() != endKeyOf(task.ID()) {
			t.Errorf("got %q", task.EndKey())
		}
	})
}
