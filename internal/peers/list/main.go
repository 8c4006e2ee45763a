// List prints the Debian packages that bring the programs which the tests compare imgtool with, one a line.
//
//	go run ./internal/peers/list [-missing] [-soak]
package main

import (
	"flag"
	"fmt"

	"github.com/imgtool/imgtool/internal/peers"
)

func main() {
	missing := flag.Bool("missing", false, "only packages of which a program is not installed")
	soak := flag.Bool("soak", false, "also those that only `make soak` uses")
	flag.Parse()
	for _, pkg := range peers.Packages(func(program string) bool {
		return (*soak || !peers.SoakOnly(program)) && (!*missing || peers.Missing(program))
	}) {
		fmt.Println(pkg)
	}
}
