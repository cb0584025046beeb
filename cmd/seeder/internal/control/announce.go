//go:build linux

package control

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"seeder/cmd/seeder/internal/cli"
)

// handleAnnounce takes the archive, if there is one, before it writes anything:
// an HTTP/1 client is not ready for an answer before it has sent its request.
// What the importer leaves unread is the server's to drop.
func (c *Server) handleAnnounce(w http.ResponseWriter, r *http.Request) {
	q, ctx := r.URL.Query(), r.Context()
	orders, leftOut, err := c.orders(ctx, q, r.Body)
	if err != nil {
		c.answer(w, nil, err)
		return
	}
	s := newStream(w)
	if len(leftOut) > 0 {
		_ = s.emit(Event{Event: EventSource, Source: "archive", Reason: "left out of the archive: " + strings.Join(leftOut, "; ")}) // the next one tells if nobody listens
	}
	s.end(c.announce(ctx, s, orders, waiting{on: q.Get("wait") == "true", all: q.Get("all") == "true"}))
}

// order is an Order and what was imported for it.
type order struct {
	Order
	brought Imported
}

// orders are what a request asks to be announced, imported where it brings an archive or
// names what was pushed, and what is said of an archive's other images.
func (c *Server) orders(ctx context.Context, q url.Values, body io.Reader) (out []order, leftOut []string, _ error) {
	o := Order{At: digest.Digest(q.Get("digest")), Rollback: q.Get("rollback") == "true", On: q["on"], AnyPlatform: q.Get("any_platform") == "true", NoDelta: q.Get("no_delta") == "true"}
	if q.Has("pushed") {
		out, err := c.pushed(ctx, q["pushed"], o)
		return out, nil, err
	}
	if err := o.At.Validate(); o.At != "" && err != nil {
		return nil, nil, cli.Usagef("digest %q: %w", o.At, err)
	}
	if q.Get("archive") != "true" {
		out, err := ofContainerd(q["ref"], o)
		if err == nil && len(out) > 1 && !o.Rollback { // which finds what has no name any more
			err = c.hasAll(ctx, out)
		}
		return out, nil, err
	}
	var err error
	if q.Get("ref") != "" {
		if o.Ref, err = cli.NormalizeRef(q.Get("ref")); err != nil {
			return nil, nil, err
		}
	}
	brought, err := c.announcer.ImportArchive(ctx, body, o.Ref)
	if err != nil {
		return nil, nil, err
	}
	if len(brought.Names) == 0 {
		return nil, nil, cli.Usagef("the archive has no name for its image; give one: seeder announce REF --from FILE")
	}
	for _, ref := range brought.Names {
		next := order{o, brought}
		next.Ref = ref
		out = append(out, next)
	}
	return out, brought.LeftOut, nil
}

// ofContainerd are orders of images that containerd has, each once.
func ofContainerd(refs []string, o Order) (out []order, err error) {
	if err := CheckSeveral(refs); err != nil {
		return nil, err
	}
	switch {
	case len(refs) > 1 && o.At != "":
		return nil, cli.Usagef("the digest %s for %d images", o.At, len(refs))
	case len(refs) == 0:
		refs = []string{""} // which the error says
	}
	asked := map[string]bool{}
	for _, ref := range refs {
		next := order{Order: o}
		if next.Ref, err = cli.NormalizeRef(ref); err != nil {
			return nil, err
		}
		if !asked[next.Ref] {
			out = append(out, next)
		}
		asked[next.Ref] = true
	}
	return out, nil
}

// hasAll is an error where containerd lacks one of several images: none is announced then.
func (c *Server) hasAll(ctx context.Context, orders []order) error {
	var errs []error
	for _, o := range orders {
		_, err := c.announcer.Local(ctx, o.Ref)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pushed imports images that were pushed, each REF@DIGEST. Where one cannot be imported none
// is; what was pushed stays for another try then.
func (c *Server) pushed(ctx context.Context, images []string, o Order) (out []order, err error) {
	if c.Pushes == nil {
		return nil, cli.Usagef("this daemon takes no pushed images")
	}
	if err := CheckPushed(images); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		for _, o := range out {
			err = errors.Join(err, o.brought.takeBack(context.WithoutCancel(ctx), o.Ref))
		}
	}()
	targets := map[digest.Digest]bool{}
	for _, image := range images {
		ref, at := image, ""
		if i := strings.LastIndexByte(image, '@'); i >= 0 { // the reference may have a digest, too
			ref, at = image[:i], image[i+1:]
		}
		next, target := order{Order: o}, digest.Digest(at)
		if next.Ref, err = cli.NormalizeRef(ref); err != nil {
			return out, err
		}
		if err = target.Validate(); err != nil {
			return out, cli.Usagef("digest %q: %w", at, err)
		}
		if next.brought, err = c.importPushed(ctx, target, next.Ref); err != nil {
			return out, err
		}
		out, targets[target] = append(out, next), true
	}
	for target := range targets {
		if err := c.Pushes.Drop(ctx, target); err != nil {
			c.log.Warn("failed to remove what was pushed of an image", "digest", target, "err", err)
		}
	}
	return out, nil
}

func (c *Server) importPushed(ctx context.Context, target digest.Digest, ref string) (Imported, error) {
	archive, err := c.Pushes.Archive(ctx, target, ref)
	if err != nil {
		return Imported{}, err
	}
	imported, err := c.announcer.ImportArchive(ctx, archive, ref)
	return imported, errors.Join(err, archive.Close())
}

// waiting is what an announcement waits for: nothing, the nodes that are there, or all.
type waiting struct{ on, all bool }

// announcing is how many images are announced at once: a small one waits for the disk and
// for containerd most of the time.
const announcing = 4

// announce announces images, a few at once, and tells of each in their order. Those that can
// be are announced, also where another one cannot; of that one an archive leaves nothing
// behind, nor of those that nobody waits for any more.
func (c *Server) announce(ctx context.Context, s *stream, orders []order, wait waiting) (err error) {
	watch := watcher{cluster: c.cluster, versions: map[string]uint64{}, emit: s.emit, all: wait.all}
	announced, failed := make([]Announced, len(orders)), make([]error, len(orders))
	ended := make([]chan struct{}, len(orders)) // of those that have begun
	actx, cancel := context.WithCancel(ctx)
	begun := 0
	defer func() { // where nobody listens any more
		cancel()
		for _, e := range ended[:begun] {
			<-e
		}
		for _, o := range orders[begun:] {
			err = errors.Join(err, o.brought.takeBack(context.WithoutCancel(ctx), o.Ref))
		}
	}()
	for i := range orders {
		if err := s.emit(Event{Event: EventPreparing, Ref: orders[i].Ref}); err != nil {
			return err
		}
		for ; begun < min(i+announcing, len(orders)); begun++ {
			k, e := begun, make(chan struct{})
			ended[k] = e
			go func() {
				defer close(e)
				announced[k], failed[k] = c.announceOne(actx, orders[k])
			}()
		}
		<-ended[i]
		if failed[i] != nil {
			continue
		}
		a := announced[i]
		if a.Said != "" {
			if err := s.emit(Event{Event: EventSource, Ref: a.Reference, Source: "containerd", Reason: a.Said}); err != nil {
				return err
			}
		}
		watch.refs = append(watch.refs, a.Reference)
		watch.versions[a.Reference] = a.Version
		err := s.emit(Event{Event: EventAnnounced, Ref: a.Reference, Digest: a.Digest, Version: a.Version, TotalBytes: a.Bytes,
			Standing: a.Standing})
		if err != nil {
			return err
		}
	}
	if err := errors.Join(failed...); err != nil || !wait.on {
		return err
	}
	return watch.wait(ctx)
}

// announceOne announces an image. Where it cannot, what an archive has brought of it is taken
// back.
func (c *Server) announceOne(ctx context.Context, o order) (Announced, error) {
	o.Settled = o.brought.Targets[o.Ref]
	a, err := c.announcer.Announce(ctx, o.Order)
	if err != nil {
		err = errors.Join(err, o.brought.takeBack(context.WithoutCancel(ctx), o.Ref))
	}
	return a, err
}
