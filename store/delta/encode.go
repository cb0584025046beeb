package delta

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// encode writes header, segments and the mark of the end, and decodes each as it is written.
func encode(ctx context.Context, w io.Writer, h Header, base, target Blob, most int64) (int64, error) {
	head, err := h.encode()
	if err != nil {
		return 0, err
	}
	z, err := newZstdWriter()
	if err != nil {
		return 0, err
	}
	out := counter{w: w, most: most}
	if err := out.write(head); err != nil {
		return 0, err
	}
	old := newCache(&fileSource{r: base, size: base.Bytes}, h)
	old.left *= 4 // it looks at more than it takes
	a := &aligner{old: old, seeds: newSeeds(base.Bytes, maxSeeds)}
	if err := scan(ctx, base, a.seeds); err != nil {
		return 0, fmt.Errorf("read the base: %w", err)
	}
	check := newDecoder(h, newCache(shared{old}, h), io.Discard)
	defer check.close()
	var seg, packed []byte
	buf := make([]byte, min(segmentBytes, target.Bytes))
	for off := int64(0); ; off += int64(len(buf)) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		buf = buf[:min(segmentBytes, target.Bytes-off)]
		if err := readAt(target, buf, off); err != nil {
			return 0, fmt.Errorf("read the target: %w", err)
		}
		if err := a.align(buf); err != nil {
			return 0, err
		}
		seg = appendPart(seg[:0], z, &a.part, &packed)
		if err := out.write(seg); err != nil {
			return 0, err
		}
		if _, err := check.segment(bytes.NewReader(seg)); err != nil {
			return 0, fmt.Errorf("check the delta: %w", err)
		}
		if len(buf) == 0 {
			break
		}
	}
	if err := check.sink.check(h.Target); err != nil {
		return 0, fmt.Errorf("check the delta: %w", err)
	}
	return out.n, nil
}

// scan fills the table of seeds from the base. Seeds that reach from one piece into the next are
// left out: one place in a mebibyte.
func scan(ctx context.Context, base Blob, t *seeds) error {
	buf := make([]byte, min(1<<20, base.Bytes))
	for off := int64(0); off < base.Bytes; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(int64(len(buf)), base.Bytes-off)]
		if err := readAt(base, p, off); err != nil {
			return err
		}
		t.add(p, off)
		off += int64(len(p))
	}
	return nil
}

// counter writes a delta and stops where it no longer pays.
type counter struct {
	w       io.Writer
	n, most int64
}

func (c *counter) write(p []byte) error {
	c.n += int64(len(p))
	if c.most > 0 && c.n > c.most {
		return fmt.Errorf("longer than %d bytes: %w", c.most, ErrNotWorth)
	}
	if _, err := c.w.Write(p); err != nil {
		return fmt.Errorf("write the delta: %w", err)
	}
	return nil
}
