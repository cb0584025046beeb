package control

import (
	"net/url"

	"seeder/cmd/seeder/internal/cli"
)

const (
	// maxHeaderBytes bounds the headers of a request, of which the query is one.
	maxHeaderBytes = 64 << 10
	// maxPushed bounds the images of one announcement: each takes about 130 bytes of it.
	maxPushed = 400
	// maxPushedBytes is what their names may take of it; the rest is for the other headers.
	maxPushedBytes = maxHeaderBytes - 8<<10
)

// CheckPushed refuses more images, each REF@DIGEST, than one announcement of pushed images has
// room for.
func CheckPushed(images []string) error {
	if len(images) > maxPushed {
		return cli.Usagef("%d images at once, more than %d; push them in several commands", len(images), maxPushed)
	}
	bytes := len(url.Values{"pushed": images}.Encode())
	if bytes > maxPushedBytes {
		return cli.Usagef("%d images at once have names of %d bytes, more than %d; push them in several commands", len(images), bytes, maxPushedBytes)
	}
	return nil
}
