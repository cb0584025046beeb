package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
)

// ExportOrder is what is to be exported.
type ExportOrder struct {
	Ref      string
	At       digest.Digest // the target; empty: the one that Ref has
	Since    string        // a reference; empty: the archive is whole
	SinceAt  digest.Digest // the target of the earlier build; empty: the one that Since has
	Platform string        // e.g. linux/arm64; empty: all that are here
}

// Exported says what an archive has. Sizes are in bytes of blobs as stored.
type Exported struct {
	Reference string        `json:"ref"`
	Digest    digest.Digest `json:"digest"`
	Blobs     int           `json:"blobs"` // that are in the archive as they are
	Bytes     int64         `json:"bytes"` // of these and of the deltas
	// Of an export since an earlier build:
	Since        digest.Digest `json:"since,omitempty"`
	LeftOut      int           `json:"left_out,omitempty"` // blobs that the earlier build has
	LeftOutBytes int64         `json:"left_out_bytes,omitempty"`
	Deltas       int           `json:"deltas,omitempty"`
	DeltaBytes   int64         `json:"delta_bytes,omitempty"`
	RebuiltBytes int64         `json:"rebuilt_bytes,omitempty"` // of the layers that the deltas make
}

// The header has the Exported before the archive; the trailer says after it how it ended:
// a JSON text, empty where all of it was written.
const (
	exportHeader  = "Seeder-Export"
	exportTrailer = "Seeder-Export-Error"
)

// Export asks for an archive and writes it to the writer that begin returns for it. It ends
// without an error only when all of the archive was written.
func (c *Client) Export(ctx context.Context, o ExportOrder, begin func(Exported) (io.Writer, error)) error {
	query := url.Values{"ref": {o.Ref}, "digest": {o.At.String()}, "since": {o.Since}, "since_digest": {o.SinceAt.String()}, "platform": {o.Platform}}
	var written error // what is wrong with the file is not the daemon's fault
	err := c.ask(ctx, http.MethodGet, "/v1/export", query, nil, func(resp *http.Response, body io.Reader) error {
		var e Exported
		if err := json.Unmarshal([]byte(resp.Header.Get(exportHeader)), &e); err != nil {
			return fmt.Errorf("%s: %w", exportHeader, err)
		}
		w, err := begin(e)
		if err != nil {
			written = err
			return err
		}
		if _, err := io.CopyBuffer(noted{w, &written}, body, make([]byte, sendBytes)); err != nil {
			return err
		}
		var failed *string
		if err := json.Unmarshal([]byte(resp.Trailer.Get(exportTrailer)), &failed); err != nil || failed == nil {
			return io.ErrUnexpectedEOF
		}
		if *failed != "" {
			written = errors.New(*failed)
		}
		return written
	})
	if written != nil && ctx.Err() == nil {
		return written
	}
	return err
}

// noted keeps the error of a writer.
type noted struct {
	w   io.Writer
	err *error
}

// Write implements io.Writer.
func (n noted) Write(p []byte) (int, error) {
	written, err := n.w.Write(p)
	if err != nil {
		*n.err = err
	}
	return written, err
}
