// Looks names up by Go's own resolver: each as "name address", or as "name -".
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		found, err := resolver.LookupHost(context.Background(), name)
		if err != nil || len(found) == 0 {
			found = []string{"-"}
		}
		fmt.Println(name, found[0])
	}
}
