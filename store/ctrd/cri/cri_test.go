package cri

import (
	"cmp"
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"seeder/store/ctrd/sockettest"
)

// server answers what it is given, as a CRI on a unix socket.
type server struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer

	status  *runtime.StatusResponse
	systems []*runtime.FilesystemUsage
	image   *runtime.Image
	err     error // of every question but that for the status
	down    error // of every question

	verbose bool   // the status was asked for with all that there is
	asked   string // for which image
}

func (s *server) Status(_ context.Context, r *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	s.verbose = r.GetVerbose()
	return s.status, s.down
}

func (s *server) ImageFsInfo(context.Context, *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	return &runtime.ImageFsInfoResponse{ImageFilesystems: s.systems}, cmp.Or(s.down, s.err)
}

func (s *server) ImageStatus(_ context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	s.asked = r.GetImage().GetImage()
	return &runtime.ImageStatusResponse{Image: s.image}, cmp.Or(s.down, s.err)
}

// dial serves s, nil: no CRI at all, until the test ends.
func dial(t *testing.T, s *server) *grpc.ClientConn {
	t.Helper()
	return sockettest.Dial(t, func(g *grpc.Server) {
		if s != nil {
			runtime.RegisterRuntimeServiceServer(g, s)
			runtime.RegisterImageServiceServer(g, s)
		}
	})
}

func condition(kind string, ok bool, reason, message string) *runtime.RuntimeCondition {
	return &runtime.RuntimeCondition{Type: kind, Status: ok, Reason: reason, Message: message}
}

// TestAsk: the status says whether the runtime is ready, and with it what containerd does
// with layers where it says that.
func TestAsk(t *testing.T) {
	t.Parallel()
	ready := condition("RuntimeReady", true, "", "")
	for name, c := range map[string]struct {
		conditions []*runtime.RuntimeCondition
		config     string // of the verbose status
		want       Status
	}{
		"ready":              {[]*runtime.RuntimeCondition{ready}, `{"containerd":{"snapshotter":"overlayfs","discardUnpackedLayers":true,"runtimes":{}},"cni":{}}`, Status{Served: true, Discards: true, Snapshotter: "overlayfs"}},
		"says no layers":     {[]*runtime.RuntimeCondition{ready}, `{"containerd":{"defaultRuntimeName":"runc"}}`, Status{Served: true}},
		"no verbose status":  {[]*runtime.RuntimeCondition{ready}, "", Status{Served: true}},
		"another config":     {[]*runtime.RuntimeCondition{ready}, `{"containerd":["snapshotter"]}`, Status{Served: true}},
		"runtime not ready":  {[]*runtime.RuntimeCondition{condition("NetworkReady", true, "", ""), condition("RuntimeReady", false, "ContainerdNotReady", "shutting down")}, "", Status{Served: true, Reason: "ContainerdNotReady shutting down"}},
		"without a reason":   {[]*runtime.RuntimeCondition{condition("RuntimeReady", false, "", "shutting down")}, "", Status{Served: true, Reason: "shutting down"}},
		"only network lacks": {[]*runtime.RuntimeCondition{ready, condition("NetworkReady", false, "NetworkPluginNotReady", "cni plugin not initialized")}, "", Status{Served: true}},
	} {
		s := &server{status: &runtime.StatusResponse{Status: &runtime.RuntimeStatus{Conditions: c.conditions}, Info: map[string]string{"golang": `"go1.25"`}}}
		if c.config != "" {
			s.status.Info["config"] = c.config
		}
		got, err := Ask(t.Context(), dial(t, s))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
		if !s.verbose {
			t.Errorf("%s: the config was not asked for", name)
		}
	}
}

// TestSnapshotter: what the status says counts before the path of the image file system;
// where neither tells it is empty.
func TestSnapshotter(t *testing.T) {
	t.Parallel()
	at := func(path string) []*runtime.FilesystemUsage {
		return []*runtime.FilesystemUsage{{FsId: &runtime.FilesystemIdentifier{Mountpoint: path}}}
	}
	said := &runtime.StatusResponse{Info: map[string]string{"config": `{"containerd":{"snapshotter":"stargz"}}`}}
	const dir = "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1."
	for name, c := range map[string]struct {
		server *server
		want   string
	}{
		"said by the status":      {&server{status: said, systems: at(dir + "overlayfs")}, "stargz"},
		"by the image filesystem": {&server{status: &runtime.StatusResponse{}, systems: append(at("/var/lib/other"), at(dir+"fuse-overlayfs")...)}, "fuse-overlayfs"},
		"by neither":              {&server{status: &runtime.StatusResponse{}, systems: at("/var/lib/containers/storage/overlay-images")}, ""},
		"a path without a name":   {&server{status: &runtime.StatusResponse{}, systems: at(dir)}, ""},
		"no such question":        {&server{status: &runtime.StatusResponse{}, err: status.Error(codes.Unimplemented, "unknown method ImageFsInfo")}, ""},
		"no CRI":                  {nil, ""},
	} {
		if got, err := Snapshotter(t.Context(), dial(t, c.server)); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// TestImageID: the id of an image that is there, none of one that is not.
func TestImageID(t *testing.T) {
	t.Parallel()
	const ref, id = "docker.io/library/app:v1", "sha256:5d0da3dc976460b72c77d94c8a1ad043720b0416bfc16c52c45d4847e53fadb6"
	s := &server{image: &runtime.Image{Id: id}}
	if got, err := ImageID(t.Context(), dial(t, s), ref); err != nil || got != id || s.asked != ref {
		t.Errorf("%q, %v; asked for %q", got, err, s.asked)
	}
	if got, err := ImageID(t.Context(), dial(t, &server{}), ref); err != nil || got != "" {
		t.Errorf("of an image that is not there: %q, %v", got, err)
	}
}

// TestErrors: a socket without CRI has a status, and no images; what else goes wrong is an
// error of errdefs, with what the other side says.
func TestErrors(t *testing.T) {
	t.Parallel()
	none := dial(t, nil)
	if got, err := Ask(t.Context(), none); err != nil || got != (Status{}) {
		t.Errorf("without CRI: %+v, %v", got, err)
	}
	if _, err := ImageID(t.Context(), none, "app:v1"); !errdefs.IsNotImplemented(err) {
		t.Errorf("without CRI: %v", err)
	}
	down := dial(t, &server{down: status.Error(codes.Unavailable, "server is not initialized yet")})
	_, asked := Ask(t.Context(), down)
	_, named := Snapshotter(t.Context(), down)
	_, found := ImageID(t.Context(), down, "app:v1")
	for what, err := range map[string]error{"Ask": asked, "Snapshotter": named, "ImageID": found} {
		if !errdefs.IsUnavailable(err) || err.Error() != "server is not initialized yet" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
