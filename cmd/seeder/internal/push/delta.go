package push

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/engines"
	"seeder/cmd/seeder/internal/show"
	"seeder/store/archive"
)

// sniffBytes is how much of a file says that it is a delta archive.
const sniffBytes = 512

// deltaArchive opens the delta archive (`seeder export --since`) that is to be pushed, if it
// is one. Its layers cannot be rebuilt here, where the earlier build is not. Without one the
// Env is that with which the sources are to be read.
func (f *flags) deltaArchive(env *cli.Env, sources []source) (*cli.Env, io.ReadCloser, error) {
	for _, s := range sources {
		var head []byte
		var whole io.ReadCloser
		switch info, err := os.Stat(s.from); {
		case s.from == engines.FromStdin:
			stdin := bufio.NewReaderSize(env.Stdin, sniffBytes)
			head, _ = stdin.Peek(sniffBytes) // its error comes again
			same := *env
			same.Stdin, env, whole = stdin, &same, io.NopCloser(stdin)
		case err == nil && info.Mode().IsRegular() && s.from != engines.FromAuto && s.from != engines.FromDocker && s.from != engines.FromPodman:
			file, err := os.Open(s.from)
			if err != nil {
				continue // to open it says so
			}
			head = make([]byte, sniffBytes)
			n, _ := file.ReadAt(head, 0)
			head, whole = head[:n], file
		default:
			continue
		}
		switch {
		case !archive.IsDelta(head):
			if err := whole.Close(); err != nil {
				return nil, nil, err
			}
		case len(sources) > 1:
			return nil, nil, errors.Join(cli.Usagef("%s has only what changed in an image: push it by itself", s.name()), whole.Close())
		default:
			return env, whole, nil
		}
	}
	return env, nil, nil
}

// pass sends an archive as it is, for the daemon to import and announce.
func (f *flags) pass(ctx context.Context, c *control.Client, follower *show.Follower, file io.Reader, ref string) error {
	query := f.query()
	query.Set("archive", "true")
	if ref != "" {
		query.Set("ref", ref)
	}
	return follower.Follow(ctx, c, http.MethodPost, "/v1/announce", query, file)
}

// query is what the flags ask of an announcement.
func (f *flags) query() url.Values {
	text := map[bool]string{true: "true", false: "false"}
	return url.Values{"wait": {text[!f.detach]}, "all": {text[f.all]}, "on": f.on, "any_platform": {text[f.any]}}
}
