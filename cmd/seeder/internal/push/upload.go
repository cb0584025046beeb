package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/store/archive"
	"seeder/store/chunk"
)

const (
	// maxAsking bounds the blobs that are asked for at once, maxSending those that are sent.
	maxAsking  = 16
	maxSending = 3
	// leastPacked is the size from which a blob is compressed, in bytes.
	leastPacked = 4 << 10
	// headBytes of a blob tell whether it is compressed: the longest magic number is that of xz.
	headBytes = 6
	// maxManifestBytes is the most that registries take (distribution-spec, "Pushing Manifests").
	maxManifestBytes = 4 << 20
	// repository is where all blobs go: the control socket's API has no others.
	repository = "/v2/pushed"
)

// upload sends what the daemon is missing of some images.
type upload struct {
	client *control.Client
	dir    *archive.Dir
	report func(control.Event)

	done, total atomic.Int64 // bytes of blobs as stored
	mu          sync.Mutex
	last        time.Time // of a report
}

// counts are what an upload came to.
type counts struct {
	blobs, missing     int
	bytes, missingSize int64
}

// send sends the blobs of images that the daemon is missing, then their manifests.
func (u *upload) send(ctx context.Context, images []archive.Image) (n counts, err error) {
	var blobs, manifests []ocispec.Descriptor
	seen := map[string]bool{}
	for _, img := range images {
		b, m, err := u.dir.Blobs(ctx, img.Target)
		if err != nil {
			return n, fmt.Errorf("%s: %w", cli.ShortRef(img.Reference), err)
		}
		for _, d := range b {
			if !seen[d.Digest.String()] {
				seen[d.Digest.String()] = true
				blobs = append(blobs, d)
				n.bytes += d.Size
			}
		}
		manifests = append(manifests, m...)
	}
	missing, err := u.missing(ctx, blobs)
	if err != nil {
		return n, err
	}
	for _, d := range missing {
		n.missingSize += d.Size
	}
	n.blobs, n.missing = len(blobs), len(missing)
	u.total.Store(n.missingSize)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxSending)
	for _, d := range missing {
		g.Go(func() error { return u.blob(gctx, d) })
	}
	if err := g.Wait(); err != nil {
		return n, err
	}
	for _, d := range manifests {
		if err := u.manifest(ctx, d); err != nil {
			return n, err
		}
	}
	return n, nil
}

// missing are the blobs that the daemon has not.
func (u *upload) missing(ctx context.Context, blobs []ocispec.Descriptor) (out []ocispec.Descriptor, err error) {
	is := make([]bool, len(blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAsking)
	for i, d := range blobs {
		g.Go(func() error {
			resp, err := u.do(ctx, http.MethodHead, repository+"/blobs/"+d.Digest.String(), nil, nil)
			if err != nil {
				return err
			}
			is[i] = resp.StatusCode == http.StatusNotFound
			if !is[i] && resp.StatusCode != http.StatusOK {
				return fmt.Errorf("ask for the blob %s: %s", d.Digest, resp.Status)
			}
			return nil
		})
	}
	err = g.Wait()
	for i, d := range blobs {
		if is[i] {
			out = append(out, d)
		}
	}
	return out, err
}

// blob sends one blob, compressed if it is not yet.
func (u *upload) blob(ctx context.Context, d ocispec.Descriptor) error {
	f, err := u.dir.Open(ctx, d)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, headBytes)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read the blob %s: %w", d.Digest, err)
	}
	var body io.Reader = &counted{io.MultiReader(bytes.NewReader(head[:n]), f), u}
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	if d.Size >= leastPacked && chunk.Compressible(d.MediaType, head[:n]) {
		header.Set("Content-Encoding", "zstd")
		r := pack(body)
		defer r.Close()
		body = r
	}
	_, err = u.do(ctx, http.MethodPost, repository+"/blobs/uploads/?digest="+d.Digest.String(), body, header, http.StatusCreated)
	if err != nil {
		return fmt.Errorf("send the blob %s (%d bytes): %w", d.Digest, d.Size, err)
	}
	return nil
}

// packing reads something compressed with zstd. Close waits for who compresses it.
type packing struct {
	*io.PipeReader
	done chan struct{}
}

func pack(r io.Reader) *packing {
	pr, pw := io.Pipe()
	p := &packing{pr, make(chan struct{})}
	go func() {
		defer close(p.done)
		w, err := zstd.NewWriter(pw, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
		if err == nil {
			_, err = io.Copy(w, r)
			err = errors.Join(err, w.Close())
		}
		pw.CloseWithError(err)
	}()
	return p
}

// Close implements io.Closer.
func (p *packing) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// manifest sends a manifest or an index, after all that it names.
func (u *upload) manifest(ctx context.Context, d ocispec.Descriptor) error {
	if d.Size > maxManifestBytes {
		return fmt.Errorf("the manifest %s has %d bytes; a manifest has at most %d", d.Digest, d.Size, maxManifestBytes)
	}
	f, err := u.dir.Open(ctx, d)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxManifestBytes))
	if err != nil {
		return fmt.Errorf("read the manifest %s: %w", d.Digest, err)
	}
	_, err = u.do(ctx, http.MethodPut, repository+"/manifests/"+d.Digest.String(), bytes.NewReader(content), http.Header{"Content-Type": {d.MediaType}}, http.StatusCreated)
	if err != nil {
		return fmt.Errorf("send the manifest %s: %w", d.Digest, err)
	}
	return nil
}

// mayPush is an error where the daemon takes no push from anybody, e.g. since the host is not
// in announcers.
func mayPush(ctx context.Context, c *control.Client) error {
	_, err := (&upload{client: c}).do(ctx, http.MethodGet, "/v2/", nil, nil, http.StatusOK)
	return err
}

// do sends a request. An answer other than want, where that is given, is an error with what
// the daemon says.
func (u *upload) do(ctx context.Context, method, path string, body io.Reader, header http.Header, want ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if len(want) == 0 || resp.StatusCode == want[0] {
		return resp, nil
	}
	return nil, refusal(resp, said)
}

// refusal is the daemon's own word for why not.
func refusal(resp *http.Response, said []byte) error {
	var answer struct {
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(said, &answer); err != nil || len(answer.Errors) == 0 || answer.Errors[0].Message == "" {
		if resp.StatusCode == http.StatusNotFound {
			return errors.New("the daemon takes no pushes; upgrade seeder on the host")
		}
		return fmt.Errorf("the daemon answers %s", resp.Status)
	}
	return errors.New(answer.Errors[0].Message)
}

const reportInterval = 500 * time.Millisecond

// counted counts what is read of a blob, and reports it now and then.
type counted struct {
	io.Reader
	u *upload
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	done := c.u.done.Add(int64(n))
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	if now := time.Now(); now.Sub(c.u.last) >= reportInterval || n > 0 && done == c.u.total.Load() {
		c.u.last = now
		c.u.report(control.Event{Event: control.EventSending, Time: now.UTC(), DoneBytes: done, TotalBytes: c.u.total.Load()})
	}
	return n, err
}
