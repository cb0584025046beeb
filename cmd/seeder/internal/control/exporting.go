//go:build linux

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
)

// Exporter makes archives of images of this host.
type Exporter interface {
	// Export calls begin once the archive is known, with what writes it. Errors before that
	// leave begin uncalled.
	Export(ctx context.Context, o ExportOrder, begin func(e Exported, write func(io.Writer) error) error) error
}

func (c *Server) handleExport(w http.ResponseWriter, r *http.Request) {
	o, err := exportOrder(r)
	if err == nil && c.Exports == nil {
		err = cli.Usagef("this daemon exports no images")
	}
	if err != nil {
		c.answer(w, nil, err)
		return
	}
	begun := false
	err = c.Exports.Export(r.Context(), o, func(e Exported, write func(io.Writer) error) error {
		head, err := json.Marshal(e)
		if err != nil {
			return err
		}
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set("Trailer", exportTrailer)
		w.Header().Set(exportHeader, string(head))
		out := bufio.NewWriterSize(w, sendBytes)
		if err := write(out); err != nil {
			return err
		}
		return out.Flush()
	})
	if !begun {
		c.answer(w, nil, err)
		return
	}
	var failed string
	if err != nil {
		if failed = err.Error(); c.stopping.Load() {
			failed = errStopping.Error()
		}
		c.log.Debug("an export ended before its end", "ref", o.Ref, "err", err)
	}
	text, err := json.Marshal(failed)
	if err != nil {
		text = []byte(`"the archive is incomplete"`)
	}
	w.Header().Set(exportTrailer, string(text))
}

// exportOrder is what a request asks for.
func exportOrder(r *http.Request) (o ExportOrder, err error) {
	q := r.URL.Query()
	o = ExportOrder{At: digest.Digest(q.Get("digest")), SinceAt: digest.Digest(q.Get("since_digest")), Platform: q.Get("platform")}
	if o.Ref, err = cli.NormalizeRef(q.Get("ref")); err != nil {
		return o, err
	}
	if since := q.Get("since"); since != "" {
		if o.Since, err = cli.NormalizeRef(since); err != nil {
			return o, err
		}
	}
	for _, d := range []digest.Digest{o.At, o.SinceAt} {
		if err := d.Validate(); d != "" && err != nil {
			return o, cli.Usagef("digest %q: %w", d, err)
		}
	}
	return o, nil
}
