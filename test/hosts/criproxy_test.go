package hosts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"seeder/p2p/report"
	"seeder/store/storetest"
	"seeder/test/harness"
)

// proxyPath is the socket of a criProxy on its host.
const proxyPath = "/run/k3s/proxy.sock"

// criProxy passes every call on to a host's containerd, as it is, but CRI's question for
// an image while it is told to answer that there is none.
type criProxy struct {
	backend *grpc.ClientConn
	hides   atomic.Bool
	asked   atomic.Int64 // questions that were answered so
}

// asIs is a codec for messages that are passed on.
type asIs struct{}

func (asIs) Name() string { return "proto" }

func (asIs) Marshal(v any) (mem.BufferSlice, error) {
	p, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not a message to pass on", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*p)}, nil
}

func (asIs) Unmarshal(data mem.BufferSlice, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not a message to pass on", v)
	}
	*p = data.Materialize()
	return nil
}

// proxyContainerd serves proxyPath until the test ends.
func proxyContainerd(h *harness.Host) *criProxy {
	h.T.Helper()
	backend, err := grpc.NewClient("passthrough:///containerd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(asIs{}), grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.Path(harness.Socket))
		}))
	if err != nil {
		h.T.Fatal(err)
	}
	p := &criProxy{backend: backend}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(asIs{}), grpc.UnknownServiceHandler(p.pass), grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	l, err := net.Listen("unix", h.Path(proxyPath))
	if err != nil {
		h.T.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	h.T.Cleanup(func() {
		srv.Stop()
		if err := errors.Join(<-done, backend.Close()); err != nil {
			h.T.Error(err)
		}
	})
	return p
}

// pass is the handler of every call.
func (p *criProxy) pass(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	if method == runtime.ImageService_ImageStatus_FullMethodName && p.hides.Load() {
		p.asked.Add(1)
		none, err := proto.Marshal(&runtime.ImageStatusResponse{})
		if err != nil {
			return err
		}
		return in.SendMsg(&none)
	}
	ctx := in.Context()
	if md, ok := metadata.FromIncomingContext(ctx); ok { // namespace and lease
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := p.backend.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() { _ = passOn(in.RecvMsg, out.SendMsg, out.CloseSend) }() // ends with the call; what ended it is received below
	return passOn(out.RecvMsg, in.SendMsg, func() error { in.SetTrailer(out.Trailer()); return nil })
}

// passOn passes messages on to their end.
func passOn(recv, send func(any) error, end func() error) error {
	for {
		var msg []byte
		if err := recv(&msg); errors.Is(err, io.EOF) {
			return end()
		} else if err != nil {
			return err
		}
		if err := send(&msg); err != nil {
			return err
		}
	}
}

// TestImportThatCRIDoesNotShow: the last step of an import fails, in which CRI is asked
// for the name. What was named is what it was, nothing is pinned, leased or half-written,
// and once CRI answers the same command succeeds.
func TestImportThatCRIDoesNotShow(t *testing.T) {
	t.Parallel()
	h := harness.NewNetwork(t, "").AddHost(harness.Newest)
	h.StartContainerd()
	proxy := proxyContainerd(h)
	h.StartSeeder("SEEDER_CONTAINERD_ADDRESS=" + proxyPath)
	const ref = "docker.io/library/shown:v1"
	build := func(says string) string {
		return harness.NewImage(t, harness.ImageSpec{Ref: ref, Says: says, Payload: 10_000}).OCIArchive(t, h.Net.Dir)
	}
	for _, before := range []string{"", "first"} { // a name that is new, and one that has a build
		if before != "" {
			h.Run("announce", "--from", build(before))
		}
		storetest.CollectBy(t, h.Client()) // the index of the archive
		records, content, leases := h.Ctr("images", "ls"), h.Ctr("content", "ls", "-q"), leasesOn(h)
		proxy.hides.Store(true)
		err := h.Try(nil, "announce", "--from", build("second"))
		if harness.ExitCode(err) != 1 || !strings.Contains(err.Error(), "CRI does not show it: CRI does not know the reference") {
			t.Errorf("after %q: %v", before, err)
		}
		if proxy.asked.Load() == 0 {
			t.Error("CRI was not asked")
		}
		if got := h.Ctr("images", "ls"); got != records {
			t.Errorf("after %q the images are\n%s\nwant\n%s", before, got, records)
		}
		proxy.hides.Store(false)
		if img, err := h.ImageStatus(ref); err != nil || (img != nil) != (before != "") {
			t.Errorf("after %q CRI shows %v, %v", before, img, err)
		}
		harness.Eventually(t, 30*time.Second, "nothing is leased, unfinished or left", func() error {
			storetest.CollectBy(t, h.Client()) // containerd's own collection comes later
			if got := leasesOn(h); !slices.Equal(got, leases) {
				return fmt.Errorf("the leases are %q, want %q", got, leases)
			}
			if got := h.Ctr("content", "active"); strings.Count(got, "\n") > 1 {
				return fmt.Errorf("unfinished:\n%s", got)
			}
			if got := h.Ctr("content", "ls", "-q"); sortedLines(got) != sortedLines(content) {
				return fmt.Errorf("the content is\n%s\nwant\n%s", got, content)
			}
			return nil
		})
		if before != "" {
			if got := h.RunContainer(ref); got != before {
				t.Errorf("a container prints %q", got)
			}
			if img, err := h.Image("shown:v1"); err != nil || len(img.Nodes) != 1 || img.Version != 1 {
				t.Errorf("announced: %+v %v", img, err)
			}
		}
	}
	h.Run("announce", "--from", build("third"))
	if got := h.RunContainer(ref); got != "third" {
		t.Errorf("a container prints %q", got)
	}
	if img, err := h.Image("shown:v1"); err != nil || len(img.Nodes) != 1 || img.Nodes[0].State != report.Ready {
		t.Errorf("announced: %+v %v", img, err)
	}
}

func sortedLines(s string) string {
	lines := strings.Fields(s)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
