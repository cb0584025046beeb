package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"seeder/store/artifact"
	"seeder/store/blobfile"
)

// Checks owns the answer to whether an image is ready, and what may have changed it since.
type Checks struct {
	conn    *Conn
	files   *Files
	content *Content
	runtime *Runtime
	images  *Images

	mu      sync.Mutex
	checked map[string]checked // each ref that its last Check found ready
}

// Check says whether ref is at target, complete, unpacked, pinned and known to
// CRI; where it is not, reason says what is missing. Intact uses the result of the last
// Check of ref, no matter which part of the daemon has made it.
func (ck *Checks) Check(ctx context.Context, ref string, target digest.Digest) (ready bool, reason string, err error) {
	ctx, cl, err := ck.conn.use(ctx)
	if err != nil {
		return false, "", err
	}
	cs := ck.content.once(cl)
	var top digest.Digest
	defer func() {
		seen := checked{}
		if ready {
			seen = checked{blobs: slices.Collect(maps.Keys(cs.infos)), top: top}
		}
		ck.keepChecked(ref, seen)
	}()
	img, err := cl.ImageService().Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return false, "containerd has no image of that name", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("look up image %s: %w", ref, ck.conn.fail(err))
	}
	if img.Target.Digest != target {
		return false, "the name stands for " + img.Target.Digest.String(), nil
	}
	blobs, err := ck.content.walk(ctx, cs, img.Target)
	if err != nil {
		var missing *MissingError
		if errors.As(err, &missing) {
			return false, missing.Error(), nil
		}
		return false, "", err
	}
	for _, b := range blobs {
		if ck.content.Damaged(ctx, b.Digest) {
			return false, fmt.Sprintf("blob %s is damaged in containerd's content store; it is replaced by that of another node, or where no other has it by `seeder announce --from` of an archive that has it", b.Digest), nil
		}
	}
	if foreign, err := ck.content.isForeign(ctx, cs, img.Target); err != nil {
		return false, "", err
	} else if foreign {
		return false, "the image has nothing for " + ck.conn.Platform(), nil
	}
	if loose, err := artifact.Unlabelled(ctx, cs, target, blobs); loose != "" || err != nil {
		return false, fmt.Sprintf("nothing keeps blob %s from garbage collection", loose), err
	}
	if reason, err := ck.checkRecords(ctx, cl, cs, ref, img.Target); reason != "" || err != nil {
		return false, reason, err
	}
	if ck.conn.embedded != nil {
		return true, "", nil
	}
	top, err = ck.runtime.unpacked(ctx, cs, img.Target)
	if err != nil {
		return false, "", err
	}
	if top == "" {
		return false, "the image is not unpacked", nil
	}
	reason, err = ck.runtime.askCRI(ctx, cs, ref, img.Target)
	return reason == "" && err == nil, reason, err
}

// checkRecords says which of the records of ref is not as it should be.
func (ck *Checks) checkRecords(ctx context.Context, cl *client.Client, cs store, ref string, target ocispec.Descriptor) (reason string, err error) {
	records, err := ck.images.records(ctx, cs, ref, target)
	if err != nil {
		return "", err
	}
	for _, r := range records {
		img, err := cl.ImageService().Get(ctx, r.name)
		switch {
		case errdefs.IsNotFound(err):
			return "there is no record " + r.name, nil
		case err != nil:
			return "", fmt.Errorf("look up image %s: %w", r.name, ck.conn.fail(err))
		case !r.shared && img.Target.Digest != target.Digest:
			return "the record " + r.name + " is another one", nil
		case !hasLabels(img.Labels, r.labels):
			return fmt.Sprintf("labels are missing from the record %s of %v", r.name, r.labels), nil
		}
	}
	return "", nil
}

// checked is what the last Check of a ref saw.
type checked struct {
	blobs     []digest.Digest
	top       digest.Digest // the chain id of its topmost snapshot; "" where there is none
	unstacked bool          // an event has told since that the snapshot is gone
	dir       Stamp         // of the blobs' directory when Intact last saw all of them
}

// keepChecked remembers what Intact looks for; nothing where ref is not ready.
func (ck *Checks) keepChecked(ref string, seen checked) {
	ck.mu.Lock()
	defer ck.mu.Unlock()
	if ck.checked[ref] = seen; len(seen.blobs) == 0 {
		delete(ck.checked, ref)
	}
}

// Intact says whether the last Check of ref found it ready, and the pin, the snapshot and
// the blobs that it saw are still there. False where that Check has failed, or found a gap:
// who asks may hold the image for ready by an earlier one. It asks nobody, since it is
// called often: the pin was there when List was called last, of the snapshot an event would
// have told, and the blobs are there as files, since containerd collects the content of an
// image that somebody discards without an event. While no file comes or goes in their
// directory, one look at that does for all of them. True where the files cannot be read.
func (ck *Checks) Intact(ctx context.Context, ref string) bool {
	ck.mu.Lock()
	seen, known := ck.checked[ref]
	ck.mu.Unlock()
	if !known || seen.unstacked || ck.images.isLoose(ref) {
		return false
	}
	if slices.ContainsFunc(seen.blobs, func(d digest.Digest) bool { return ck.content.Damaged(ctx, d) }) {
		return false
	}
	blobs := ck.files.blobs(ctx)
	if blobs == "" {
		return true
	}
	dir := blobfile.SettledStamp(filepath.Join(blobs, digest.SHA256.String()))
	quiet := dir != Stamp{}
	for _, dgst := range seen.blobs {
		if quiet && dir == seen.dir && dgst.Algorithm() == digest.SHA256 {
			continue
		}
		_, err := os.Lstat(blobfile.Path(blobs, dgst))
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	if quiet && dir != seen.dir {
		ck.keepDir(ref, seen.blobs, dir)
	}
	return true
}

// keepDir remembers that these blobs of ref were seen, all of them, after their directory
// had its stamp; nothing where a Check has found other blobs meanwhile.
func (ck *Checks) keepDir(ref string, blobs []digest.Digest, dir Stamp) {
	ck.mu.Lock()
	defer ck.mu.Unlock()
	if seen, known := ck.checked[ref]; known && slices.Equal(seen.blobs, blobs) {
		seen.dir = dir
		ck.checked[ref] = seen
	}
}

// Changes wakes up after image records changed, and after the connection came
// back. It reconnects by itself; the channel closes when ctx ends.
func (ck *Checks) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	go func() { // ends with ctx; the reader of out waits for its close
		defer close(out)
		for {
			ck.follow(ctx, out)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return out
}

// follow passes events on until the stream breaks.
func (ck *Checks) follow(ctx context.Context, out chan<- struct{}) {
	hint := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	nsCtx, cl, err := ck.conn.use(ctx)
	if err != nil {
		return
	}
	nsCtx, cancel := context.WithCancel(nsCtx)
	defer cancel()
	events, errs := cl.EventService().Subscribe(nsCtx, `topic~="/images/"`, `topic=="/content/delete"`, `topic=="/snapshot/remove"`, `topic=="/containers/delete"`)
	hint()
	for {
		select {
		case <-ctx.Done():
			return
		case <-errs:
			return
		case e := <-events:
			if e != nil && e.Namespace == ck.conn.cfg.Namespace {
				ck.noteSnapshot(e.Event)
				hint()
			}
		}
	}
}

// noteSnapshot takes note of a removed snapshot: nothing else tells of it between
// two looks at everything.
func (ck *Checks) noteSnapshot(e typeurl.Any) {
	v, err := typeurl.UnmarshalAny(e)
	removed, ok := v.(*apievents.SnapshotRemove)
	if err != nil || !ok {
		return
	}
	ck.mu.Lock()
	defer ck.mu.Unlock()
	for ref, seen := range ck.checked {
		if seen.top != "" && removed.Key == seen.top.String() {
			seen.unstacked = true
			ck.checked[ref] = seen
		}
	}
}
