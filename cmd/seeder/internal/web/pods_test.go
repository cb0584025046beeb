package web

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"testing"

	"seeder/cmd/seeder/internal/pods"
)

// TestPagePods: pods that wait are shown with what makes them start, whether their image is
// announced or not; what they call themselves stays text, and many are counted.
func TestPagePods(t *testing.T) {
	t.Parallel()
	m := makeUp(3, 5)
	found := m.Pods(t.Context())
	for i := range 30 {
		found.List = append(found.List, pods.Waiting{Namespace: "x", Name: fmt.Sprint("<b>", i), Image: "UPPER", Reason: "ErrImagePull"})
	}
	p := newPage(m, func(ctx context.Context) pods.Found { return found }, slog.New(slog.DiscardHandler))
	t.Cleanup(p.Close)
	mux := http.NewServeMux()
	p.routes(mux)
	said := section(document(t, getPage(t, mux, "/").Body.String()), "Pods that wait for an image")
	wantSaid(t, said, "web/dashboard-7c9f edge-003 k3s-dashboard-proxy:v1 ErrImageNeverPull is announced, but failed there: import: unpack layer 3", "seeder wait k3s-dashboard-proxy:v1",
		"shop/cart-5d88 edge-002 cart:v3 ImagePullBackOff is not announced seeder announce cart:v3 # on a host that has it", "x/<b>0", "And 12 more: seeder doctor")
	said = section(document(t, getPage(t, pageHandler(t, m), "/").Body.String()), "Pods")
	if said != "" {
		t.Errorf("where nobody is asked it says %s", said)
	}
}
