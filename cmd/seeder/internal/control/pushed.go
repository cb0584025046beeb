package control

import (
	"net/url"

	"seeder/cmd/seeder/internal/cli"
)

const (
	// maxHeaderBytes bounds the headers of a request, of which the query is one.
	maxHeaderBytes = 64 << 10
	// maxImages bounds the images of one announcement: each takes about 130 bytes of it.
	maxImages = 400
	// maxImagesBytes is what their names may take of it; the rest is for the other headers.
	maxImagesBytes = maxHeaderBytes - 8<<10
)

// CheckPushed refuses more images, each REF@DIGEST, than one announcement of pushed images has
// room for.
func CheckPushed(images []string) error {
	return checkMany(url.Values{"pushed": images}, len(images), "push them in several commands")
}

// CheckSeveral refuses more references than one announcement has room for.
func CheckSeveral(refs []string) error {
	return checkMany(url.Values{"ref": refs}, len(refs), "announce them in several commands")
}

func checkMany(query url.Values, images int, instead string) error {
	if images > maxImages {
		return cli.Usagef("%d images at once, more than %d; %s", images, maxImages, instead)
	}
	if bytes := len(query.Encode()); bytes > maxImagesBytes {
		return cli.Usagef("%d images at once have names of %d bytes, more than %d; %s", images, bytes, maxImagesBytes, instead)
	}
	return nil
}
