package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
)

// writeTimeout is how long a reader may take nothing before its connection is closed.
const writeTimeout = time.Minute

// guard lets through to api what may be asked, by those who may ask it.
func (s *Server) guard(auth Credentials, api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if err := s.allow(auth, r); err != nil {
			if errors.Is(err, ociregistry.ErrUnauthorized) {
				w.Header().Set("WWW-Authenticate", `Basic realm="seeder"`)
			}
			// Who may not read holds no connection, neither by a body that does not come.
			w.Header().Set("Connection", "close")
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout)) // of a closed one fails
			s.refuse(w, r, err)
			return
		}
		ns, err := namespace(r)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		control := http.NewResponseController(w)
		ctx := withFailure(withNamespace(r.Context(), ns))
		r = r.WithContext(ctx)
		if r.ContentLength != 0 {
			r.Body = &patientBody{r.Body, control}
			if strings.Contains(r.URL.Path, "/manifests/") {
				r.Body = bounded{http.MaxBytesReader(w, r.Body, maxManifestBytes), ctx}
			}
		}
		api.ServeHTTP(&patientWriter{ResponseWriter: w, control: control}, r)
	})
}

// allow says why a request gets no answer.
func (s *Server) allow(auth Credentials, r *http.Request) error {
	switch {
	case !numeric(r.Host): // a page that has a name of its own resolved to this host
		return fmt.Errorf("%w: the host %q is not an address of this registry", ociregistry.ErrDenied, r.Host)
	case !auth.match(r):
		return ociregistry.ErrUnauthorized
	case strings.Contains(r.URL.Path, "/manifests/") && r.ContentLength > maxManifestBytes:
		return ociregistry.NewHTTPError(errLarge, http.StatusRequestEntityTooLarge, nil, nil)
	case s.pushes && (r.Method == http.MethodPost || r.Method == http.MethodPatch || r.Method == http.MethodPut):
		return nil
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return ociregistry.NewHTTPError(errReadOnly, http.StatusMethodNotAllowed, nil, nil)
	case r.ContentLength != 0:
		return ociregistry.NewHTTPError(errBody, http.StatusBadRequest, nil, nil)
	case strings.HasPrefix(r.URL.Path, "/v2/_"):
		return ociregistry.ErrNameUnknown
	}
	return nil
}

// Their codes are unknown, since that of ociregistry.ErrUnsupported has a status of its own.
var (
	errReadOnly = errors.New("this registry does not do that; with registry.push it takes images")
	errLarge    = fmt.Errorf("a manifest has at most %d bytes", maxManifestBytes)
	errBody     = errors.New("a request that reads has no body")
)

// numeric says whether the host of a request is an address, or localhost: the names that no
// other site can have resolved to this host.
func numeric(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}

// refuse writes an error as the distribution API has it.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if f, ok := r.Context().Value(failureKey{}).(*failure); ok && f.err != nil {
		err = f.err
	}
	if errors.Is(err, ociregistry.ErrUnsupported) { // what this registry does not have at all
		err = ociregistry.ErrNameUnknown
	}
	_, status := ociregistry.MarshalError(err)
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		s.log.Warn("failed to answer the registry's client", "path", r.URL.Path, "err", err)
	}
	s.log.Debug("refused", "path", r.URL.Path, "status", status, "err", err)
	ociregistry.WriteError(w, err) // fails with the connection alone
}

// patientWriter gives the client time as long as it takes something.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write implements io.Writer.
func (w *patientWriter) Write(p []byte) (int, error) {
	if err := w.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, fmt.Errorf("set the deadline of an answer: %w", err)
	}
	return w.ResponseWriter.Write(p)
}

// WriteHeader implements http.ResponseWriter.
func (w *patientWriter) WriteHeader(status int) {
	w.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // of a closed connection fails
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

type namespaceKey struct{}

func withNamespace(ctx context.Context, ns string) context.Context {
	return context.WithValue(ctx, namespaceKey{}, ns)
}

func namespaceOf(ctx context.Context) string {
	ns, _ := ctx.Value(namespaceKey{}).(string)
	return ns
}

// maxNamespaceBytes is a DNS name with a port.
const maxNamespaceBytes = 253 + len(":65535")

// namespace is the registry for which this one stands in, empty where it is asked itself.
func namespace(r *http.Request) (string, error) {
	ns := r.URL.Query().Get("ns")
	if len(ns) > maxNamespaceBytes || strings.ContainsAny(ns, "/@ ") {
		return "", ociregistry.ErrNameInvalid
	}
	return ns, nil
}
