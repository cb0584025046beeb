// Package podstest is an API server with pods, for tests.
package podstest

import (
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// Pod is a pod as the API writes it, with a container that waits.
func Pod(name, node, image, policy, reason string) string {
	return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"web","name":%[1]q},
"spec":{"nodeName":%[2]q,"containers":[{"name":"side","image":"busybox:1"},{"name":"c","image":%[3]q,"imagePullPolicy":%[4]q}]},
"status":{"phase":"Pending","containerStatuses":[{"name":"side","state":{"running":{}}},{"name":"c","image":"other","state":{"waiting":{"reason":%[5]q,"message":"m"}}}]}}`,
		name, node, image, policy, reason)
}

// Server looks like a cluster's to kubectl: TLS, a token, discovery and pods in
// pages. It returns a kubeconfig for it.
func Server(t testing.TB, pods ...string) (kubeconfig string, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	mux := http.NewServeMux()
	handle := func(path string, fn http.HandlerFunc) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if r.Header.Get("Authorization") != "Bearer sesame" {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`)
				return
			}
			fn(w, r)
		})
	}
	answer := func(path, body string) {
		handle(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	}
	answer("/api", `{"kind":"APIVersions","versions":["v1"]}`)
	answer("/apis", `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
	answer("/api/v1", `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"pods","singularName":"pod","namespaced":true,"kind":"Pod","verbs":["get","list"],"shortNames":["po"]}]}`)
	handle("/api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		q := r.URL.Query()
		if !strings.Contains(q.Get("fieldSelector"), "status.phase") || q.Get("limit") == "" {
			t.Errorf("asked with %v", q)
		}
		page, next := pods, ""
		if half := len(pods) / 2; half > 0 && q.Get("continue") == "" {
			page, next = pods[:half], "more"
		} else if half > 0 {
			page = pods[half:]
		}
		fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1","continue":%q},"items":[%s]}`, next, strings.Join(page, ","))
	})
	s := httptest.NewTLSServer(mux)
	s.TLS.MinVersion = tls.VersionTLS12
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	kubeconfig = filepath.Join(dir, "kubeconfig")
	block := pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}
	conf := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: {token: sesame}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.URL, ca)
	for path, b := range map[string][]byte{ca: pem.EncodeToMemory(&block), kubeconfig: []byte(conf)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return kubeconfig, asked
}
