package wire

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// recheck takes a peer's word that a chunk from here was damaged. It has no body.
func (s *Server) recheck(w http.ResponseWriter, r *http.Request) {
	seed, err := parseDigest(r.PathValue("seed"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	n, err := parseChunk(r.PathValue("n"))
	if err != nil {
		s.refuse(w, r, fmt.Errorf("%w: %w", errBadRequest, err))
		return
	}
	from, err := peerOf(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.send(w, r, nil, s.cfg.Handlers.Images.Recheck(r.Context(), seed, n, from))
}

// Recheck tells the node at addr that chunk n of seed came damaged from there.
func (c *Client) Recheck(ctx context.Context, addr string, seed digest.Digest, n int) error {
	path := "/v1/swarms/" + seed.String() + "/chunks/" + strconv.Itoa(n) + "/recheck"
	_, err := c.small(ctx, http.MethodPost, addr, path, nil, 0)
	return err
}
