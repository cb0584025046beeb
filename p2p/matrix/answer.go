package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"seeder/internal/text"
	"seeder/p2p/report"
	"seeder/p2p/tally"
)

const (
	// maxLabels bounds the labels of another node.
	maxLabels = 64
	// maxReported bounds the images of a report: as many as a catalog has.
	maxReported = 65_536
	// maxSources bounds the sources of an image: the peers that are named, the other ones,
	// what was rebuilt, and what was there.
	maxSources = tally.MaxNamed + 3
	// maxEntryBytes bounds one image of a report, with all that is told of it.
	maxEntryBytes = 64 << 10
	// maxReportBytes bounds a report in which no image was asked for, and imageBytes
	// what each of those adds. Where an image came from is told of the last 64.
	maxReportBytes = 1 << 20
	imageBytes     = 1 << 10
	// maxTook bounds how long another node may say that something took.
	maxTook = 30 * 24 * time.Hour
	// maxAnswersBytes bounds the reports of all members together.
	maxAnswersBytes = 128 << 20
)

// column is what one node says of itself: its column of the matrix.
type column struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Host   *report.Host      `json:"host,omitempty"`
	Policy *report.Policy    `json:"policy,omitempty"` // where no image was asked for
	Images []columnImage     `json:"images"`
}

type columnImage struct {
	Reference string       `json:"ref"`
	Digest    string       `json:"digest"`
	Version   uint64       `json:"version"`
	State     report.State `json:"state"`
	progress
	Reason string `json:"reason"`

	RateBytesPerSecond int64           `json:"rate_bytes_per_second,omitempty"`
	Sources            []report.Source `json:"sources,omitempty"`
	WireBytes          int64           `json:"wire_bytes,omitempty"`
	SentBytes          int64           `json:"sent_bytes,omitempty"`
	TookMS             int64           `json:"took_ms,omitempty"`
	FreedBytes         int64           `json:"freed_bytes,omitempty"`
	report.Rebuilt
	Blocked string `json:"blocked,omitempty"`

	// Refused: this host does not take that announcement. It may hold an earlier one of
	// the reference, of which there is another entry.
	Refused bool `json:"refused,omitempty"`
}

// progress is how much of an image is here, of how much.
type progress struct {
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// answer is what one member said, or why it said nothing.
type answer struct {
	name   string
	away   bool // dead: counted, but not waited for
	since  time.Time
	err    error
	labels map[string]string
	host   *report.Host
	policy *report.Policy
	images map[string]columnImage
	// refused are announcements that the member does not take, by reference.
	refused map[string]columnImage
	says    string // the name that it has for itself
}

// meter bounds what is read of a report: until it is reset, which is done for each
// entry, and of all reports that share the total.
type meter struct {
	r     io.Reader
	entry int
	total *atomic.Int64 // bytes that may still be read
}

// Errors of a report that is too long.
var (
	errEntry = errors.New("an entry of more than 64 KiB")
	errTotal = errors.New("the answers of all members have more than 128 MiB; ask for fewer images")
)

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	if m.entry <= 0 {
		return 0, errEntry
	}
	n, err := m.r.Read(p[:min(len(p), m.entry)])
	m.entry -= n
	if m.total.Add(-int64(n)) < 0 {
		return 0, errTotal
	}
	return n, err
}

// decodeReport reads another node's answer entry by entry and keeps of it what was
// asked for. name is the one that gossip knows.
func decodeReport(r io.Reader, name string, asked func(ref string) bool, total *atomic.Int64) (answer, error) {
	ans := answer{name: name, images: map[string]columnImage{}, refused: map[string]columnImage{}, labels: map[string]string{}}
	m := &meter{r: r, entry: maxEntryBytes, total: total}
	d := json.NewDecoder(m)
	if err := open(d, '{'); err != nil {
		return answer{}, err
	}
	for d.More() {
		m.entry = maxEntryBytes
		key, err := d.Token()
		if err != nil {
			return answer{}, err
		}
		switch key {
		case "name":
			err = d.Decode(&ans.says)
		case "labels":
			var labels map[string]string
			err = d.Decode(&labels)
			ans.readLabels(labels)
		case "host":
			var h report.Host
			err = d.Decode(&h)
			h = boundedHost(h)
			ans.host = &h
		case "policy":
			var p report.Policy
			err = d.Decode(&p)
			p = boundedPolicy(p)
			ans.policy = &p
		case "images":
			err = ans.readImages(d, m, asked)
		default:
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return answer{}, fmt.Errorf("%v: %w", key, err)
		}
	}
	m.entry = maxEntryBytes
	_, err := d.Token()
	return ans, err
}

// open reads the beginning of an object or array.
func open(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == nil && t != want {
		err = fmt.Errorf("invalid report: %v instead of %v", t, want)
	}
	return err
}

func (ans *answer) readImages(d *json.Decoder, m *meter, asked func(ref string) bool) error {
	switch t, err := d.Token(); {
	case err != nil:
		return err
	case t == nil:
		return nil
	case t != json.Delim('['):
		return fmt.Errorf("invalid report: %v instead of [", t)
	}
	for n := 0; d.More(); n++ {
		if n == maxReported {
			return fmt.Errorf("more than %d images", maxReported)
		}
		m.entry = maxEntryBytes
		var img columnImage
		if err := d.Decode(&img); err != nil {
			return err
		}
		if asked(img.Reference) {
			ans.take(img)
		}
	}
	m.entry = maxEntryBytes
	_, err := d.Token()
	return err
}

func (ans *answer) readLabels(labels map[string]string) {
	for k, v := range labels {
		if len(ans.labels) < maxLabels && len(k)+len(v) <= report.MaxTextBytes {
			ans.labels[text.Clean(k, report.MaxTextBytes)] = text.Clean(v, report.MaxTextBytes)
		}
	}
}

// take bounds what a report says of an image.
func (ans *answer) take(img columnImage) {
	switch img.State {
	case report.Waiting, report.Fetching, report.Importing, report.Ready, report.Failed, report.Excluded:
	default:
		img.State, img.Reason = report.Waiting, "unknown state"
	}
	img.Reason, img.Blocked = text.Clean(img.Reason, report.MaxTextBytes), text.Clean(img.Blocked, report.MaxTextBytes)
	img.TotalBytes = max(img.TotalBytes, 0)
	img.DoneBytes = min(max(img.DoneBytes, 0), img.TotalBytes)
	img.RateBytesPerSecond = max(img.RateBytesPerSecond, 0)
	img.Sources = readSources(img.Sources)
	img.WireBytes, img.SentBytes, img.FreedBytes = max(img.WireBytes, 0), max(img.SentBytes, 0), max(img.FreedBytes, 0)
	img.RebuiltBytes, img.DeltaBytes, img.NoDelta = max(img.RebuiltBytes, 0), max(img.DeltaBytes, 0), text.Clean(img.NoDelta, report.MaxTextBytes)
	img.TookMS = min(max(img.TookMS, 0), maxTook.Milliseconds())
	if img.Refused {
		ans.refused[img.Reference] = img
	} else {
		ans.images[img.Reference] = img
	}
}

// answerOf is this node's own column.
func answerOf(r column) answer {
	ans := answer{name: r.Name, images: make(map[string]columnImage, len(r.Images)), refused: map[string]columnImage{}, labels: map[string]string{}}
	ans.readLabels(r.Labels)
	ans.policy, ans.host = r.Policy, r.Host
	for _, img := range r.Images {
		ans.take(img)
	}
	return ans
}

// readSources bounds the sources that another node reports.
func readSources(list []report.Source) []report.Source {
	var out []report.Source
	for _, s := range list[:min(len(list), maxSources)] {
		if s.Bytes > 0 {
			out = append(out, report.Source{Name: text.Clean(s.Name, report.MaxTextBytes), Bytes: s.Bytes})
		}
	}
	return out
}

// boundedHost is what another node says of its host, as it may be kept.
func boundedHost(h report.Host) report.Host {
	return report.Host{
		Containerd: text.Clean(h.Containerd, report.MaxTextBytes), ContainerdAway: text.Clean(h.ContainerdAway, report.MaxTextBytes),
		FreeBytes: min(max(h.FreeBytes, 0), max(h.DiskBytes, 0)), DiskBytes: max(h.DiskBytes, 0),
	}
}
