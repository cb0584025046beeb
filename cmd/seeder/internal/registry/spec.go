package registry

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"
)

// tags are those of a repository that are announced, in the order of the alphabet, those
// after the tag after.
func (b *backend) tags(ctx context.Context, repo, after string) iter.Seq2[string, error] {
	refs, err := b.announced(ctx, repo)
	if err != nil {
		return ociregistry.ErrorSeq[string](err)
	}
	var tags []string
	for _, ref := range refs {
		// What is announced by its digest alone has no tag.
		if tag := ref[strings.LastIndexAny(ref, ":@")+1:]; !strings.Contains(ref, "@") && tag > after {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return ociregistry.SliceSeq(tags)
}

// bySpec is the handler that gives api requests as ociserver reads them, where that differs
// from the distribution-spec.
func (s *Server) bySpec(b *backend, api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repo, kind, reference := parts(r.URL.Path)
		switch {
		// ociserver takes these for paths that do not exist.
		case kind == "manifests" && strings.Contains(reference, ":") && !ociref.IsValidDigest(reference):
			s.refuse(w, r, fmt.Errorf("%w: %.100q", ociregistry.ErrDigestInvalid, reference))
			return
		case kind == "manifests" && !strings.Contains(reference, ":") && !ociref.IsValidTag(reference):
			s.refuse(w, r, fmt.Errorf("%w: the tag %.100q", ociregistry.ErrNameInvalid, reference))
			return
		case kind == "blobs" && r.Method == http.MethodGet:
			if err := b.suffixRange(r, repo, reference); err != nil {
				s.refuse(w, r, err)
				return
			}
		}
		api.ServeHTTP(w, r)
	})
}

// parts are the repository, "blobs", "manifests" or another kind, and the digest or tag that
// a path names; they are empty where it has no such parts.
func parts(path string) (repo, kind, reference string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", ""
	}
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return "", "", ""
	}
	rest, reference = rest[:at], rest[at+1:]
	if at = strings.LastIndexByte(rest, '/'); at < 0 {
		return "", "", ""
	}
	return rest[:at], rest[at+1:], reference
}

// suffixRange makes of a range that counts from the end of a blob, bytes=-N, one that counts
// from its beginning: ociserver does not know the blob's size when it reads the range.
func (b *backend) suffixRange(r *http.Request, repo, reference string) error {
	last, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=-")
	if !ok || !ociref.IsValidRepository(repo) || !ociref.IsValidDigest(reference) {
		return nil
	}
	n, err := strconv.ParseInt(last, 10, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("%w: %.100q", ociregistry.ErrRangeInvalid, r.Header.Get("Range"))
	}
	blob, err := b.resolveBlob(r.Context(), repo, digest.Digest(reference))
	if err != nil {
		return err
	}
	if blob.Size == 0 { // no range of it can be had; all of it can
		r.Header.Del("Range")
		return nil
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-", max(0, blob.Size-n)))
	return nil
}
