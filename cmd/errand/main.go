// Command errand is the credential broker, and everything around it: run errand demo first, then
// errand dev, and errand --help for the rest.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
