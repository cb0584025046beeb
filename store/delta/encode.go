package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
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
	old := newCaches(sourcesOf(h.Kind, base), h)
	var aligners []*aligner
	var views []*checkView
	var read []spans
	for i, c := range old {
		c.most = math.MaxInt64 // the aligner has bounds of its own
		a := &aligner{old: c, seeds: newSeeds(2*base.Bytes, maxSeeds>>(4*i))}
		if err := scan(ctx, c.src, a.seeds); err != nil {
			return 0, fmt.Errorf("read the base: %w", err)
		}
		v := &checkView{c: c, most: maxLoads(h)}
		aligners, views, read = append(aligners, a), append(views, v), append(read, v)
	}
	check := newDecoder(h, read, io.Discard)
	defer check.close()
	from := newReader(h.Kind, target)
	streams := make([][]byte, len(old))
	var seg, packed []byte
	for more := true; more; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if err := from.segment(streams); err != nil {
			return 0, fmt.Errorf("read the target: %w", err)
		}
		allowed := int64(float64(maxLoads(h)) * from.done())
		seg = seg[:0]
		for i, a := range aligners {
			a.allowed = allowed
			if err := a.align(ctx, streams[i]); err != nil {
				return 0, err
			}
			seg = appendPart(seg, z, &a.part, &packed)
		}
		if err := out.write(seg); err != nil {
			return 0, err
		}
		for _, v := range views {
			v.forget()
		}
		if more, err = check.segment(bytes.NewReader(seg)); err != nil {
			return 0, fmt.Errorf("check the delta: %w", err)
		}
	}
	if err := check.finish(); err != nil {
		return 0, fmt.Errorf("check the delta: %w", err)
	}
	return out.n, nil
}

// scan fills the table of seeds from a stream of the base. Seeds that reach from one page
// into the next are left out.
func scan(ctx context.Context, src source, t *seeds) error {
	var p page
	for off := int64(0); ; off = p.at + int64(len(p.data)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i, err := src.find(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := src.load(i, &p); err != nil {
			return err
		}
		t.add(p.data, p.at)
	}
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
