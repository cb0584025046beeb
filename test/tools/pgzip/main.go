// Command pgzip compresses its input as podman, buildah and skopeo compress layers:
// klauspost/pgzip, a block of 1 MiB for each processor at a time.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/klauspost/pgzip"
)

func main() {
	w := pgzip.NewWriter(os.Stdout)
	_, err := io.Copy(w, os.Stdin)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pgzip:", err)
		os.Exit(1)
	}
}
