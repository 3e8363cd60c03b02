package sdk_test

import (
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/errandhq/errand/sdk"
)

// texts collects all that is reachable by reflection as a printer that knows no methods sees it,
// unexported fields too.
func texts(v reflect.Value, seen map[uintptr]bool, into *strings.Builder) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return
		}
		seen[v.Pointer()] = true
		texts(v.Elem(), seen, into)
	case reflect.Interface:
		texts(v.Elem(), seen, into)
	case reflect.Struct:
		for i := range v.NumField() {
			texts(v.Field(i), seen, into)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			texts(key, seen, into)
			texts(v.MapIndex(key), seen, into)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 && v.Kind() == reflect.Slice {
			fmt.Fprintf(into, "%s\n", v.Bytes())
			return
		}
		for i := range v.Len() {
			texts(v.Index(i), seen, into)
		}
	case reflect.String:
		fmt.Fprintln(into, v.String())
	case reflect.Invalid, reflect.Func:
	default:
		fmt.Fprintln(into, v)
	}
}

// Printers that go by reflection and call no methods see neither the token, nor the end key, nor the
// key of the SVID.
func TestReflectionSeesNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, who := inBubble(t, newFake(t))
		task := begin(t, client, spec)
		token := must(task.Token(t.Context(), ordersRead))(t)
		all := cmp.Exporter(func(reflect.Type) bool { return true })
		var said strings.Builder
		texts(reflect.ValueOf(token), map[uintptr]bool{}, &said)
		said.WriteString(cmp.Diff(*token, sdk.Token{}, all))
		if !strings.Contains(said.String(), token.GrantID) {
			t.Fatal("the test sees nothing")
		}
		private := must(who.svid.PrivateKey.(*ecdsa.PrivateKey).Bytes())(t)
		word := fmt.Sprint(binary.BigEndian.Uint64(private[len(private)-8:]))
		if strings.Contains(said.String(), word) {
			t.Error("the key of the SVID can be seen in a token")
		}
		if strings.Contains(said.String(), token.Secret()) {
			t.Error("the token can be seen in itself")
		}
		said.Reset()
		synctest.Wait() // the client's goroutines write, too
		texts(reflect.ValueOf(task), map[uintptr]bool{}, &said)
		if strings.Contains(said.String(), token.Secret()) || strings.Contains(said.String(), endKeyOf(task.ID())) {
			t.Error("a secret can be seen in the task")
		}
	})
}
