package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/distribution/reference"

	"seeder/store/imageref"
)

// dockerEntry is an image in the manifest.json of a docker-archive.
type dockerEntry struct {
	Config   string   `json:",omitempty"`
	RepoTags []string `json:",omitempty"`
	Layers   []string `json:",omitempty"`
}

// dockerTags are the tags of one image in a manifest.json.
type dockerTags struct {
	valid   int
	invalid []invalidTag
}

// invalidTag is a tag that is not an image reference.
type invalidTag struct{ said, why string }

func (t invalidTag) String() string {
	return fmt.Sprintf("%q, which is not an image reference: %s", imageref.Shortened(t.said), t.why)
}

// withoutInvalidTags takes the tags that are not image references out of a manifest.json,
// since containerd refuses the whole archive for one of them, and says which those were,
// by image. The result is as long as p: it takes its place in a tar stream. What is not a
// manifest.json stays as it is, for containerd to refuse.
func withoutInvalidTags(p []byte) ([]byte, []dockerTags, error) {
	var entries []dockerEntry
	if json.NewDecoder(bytes.NewReader(p)).Decode(&entries) != nil {
		return p, nil, nil
	}
	tags := make([]dockerTags, len(entries))
	all := true
	for i := range entries {
		e := &entries[i]
		var valid []string
		for _, tag := range e.RepoTags {
			if _, err := reference.ParseDockerRef(tag); err != nil {
				tags[i].invalid = append(tags[i].invalid, invalidTag{tag, imageref.WhyInvalid(tag, err)})
				all = false
				continue
			}
			valid = append(valid, tag)
		}
		e.RepoTags, tags[i].valid = valid, len(valid)
	}
	if all {
		return p, tags, nil
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(entries); err != nil {
		return nil, nil, fmt.Errorf("write manifest.json without its invalid tags: %w", err)
	}
	if out.Len() > len(p) { // bytes that are not UTF-8 take more once they are written as such
		return nil, nil, refusef("its manifest.json has an invalid tag, %s, and cannot be written without it: tag the image anew and save it again", firstInvalid(tags))
	}
	return append(out.Bytes(), bytes.Repeat([]byte(" "), len(p)-out.Len())...), tags, nil
}

func firstInvalid(tags []dockerTags) string {
	for _, t := range tags {
		if len(t.invalid) > 0 {
			return t.invalid[0].String()
		}
	}
	return ""
}

// rewriter passes on what is written to it, but for what it is told to hold back.
type rewriter struct {
	to   io.Writer
	held *bytes.Buffer // nil: nothing is held back
}

// Write implements io.Writer.
func (r *rewriter) Write(p []byte) (int, error) {
	if r.held != nil {
		return r.held.Write(p)
	}
	return r.to.Write(p)
}

// replace reads the file of the entry called name, a JSON document, and passes on what change
// makes of it, which is as long. A file that the tar stream does not have as it is (a sparse
// one) is passed on unchanged.
func (r *rewriter) replace(name string, file io.Reader, change func([]byte) ([]byte, error)) error {
	r.held = &bytes.Buffer{}
	p, err := io.ReadAll(io.LimitReader(file, maxArchiveDocBytes+1))
	held := r.held.Bytes()
	r.held = nil
	if err == nil {
		err = checkValues(name, p)
	}
	if err == nil && bytes.Equal(held, p) {
		held, err = change(p)
	}
	if err != nil {
		return err
	}
	_, err = r.to.Write(held)
	return err
}

// nameByTags gives the images of a docker-archive, of which containerd has made one
// manifest for each valid tag and one for an image without any, the invalid tags that
// they have, and returns what is to be said of those of images that have valid ones, too.
func nameByTags(imgs []archived, tags []dockerTags) (leftOut []string) {
	want := 0
	for _, t := range tags {
		want += max(t.valid, 1)
	}
	if want != len(imgs) { // two documents of that name in one archive
		return nil
	}
	at := 0
	for _, t := range tags {
		for _, tag := range t.invalid {
			if t.valid > 0 || imgs[at].said != "" {
				leftOut = append(leftOut, "the tag "+tag.String())
			} else {
				imgs[at].said, imgs[at].why = tag.said, tag.why
			}
		}
		at += max(t.valid, 1)
	}
	return leftOut
}
