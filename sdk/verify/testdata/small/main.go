// Command small is a resource server that has nothing but the verifier, for the test of what that adds
// to a program.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/errandhq/errand/sdk/verify"
)

func main() {
	v, err := verify.New(context.Background(), verify.Config{Issuer: os.Args[1], Audience: os.Args[2], Files: &verify.Files{}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer v.Close()
	_, err = v.Verify(context.Background(), os.Args[3], nil, verify.Scope("orders:read"))
	fmt.Println(err)
}
