// Package cri asks the CRI of containerd, as the kubelet does.
//
// It owns the questions and what their answers mean. It changes nothing, and knows no
// snapshotter, image record or platform. A socket need not serve CRI.
//
// Invariant: an error of gRPC comes back as one of errdefs.
package cri

import (
	"context"
	"encoding/json"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Status is what CRI says of itself.
type Status struct {
	Served      bool   // the socket answers CRI requests
	Reason      string // why the runtime is not ready
	Discards    bool   // discard_unpacked_layers, where it is said: containerd 2.0 to 2.3 do not
	Snapshotter string // that images are unpacked into, where it is said
}

// Ask asks for the status. A socket that does not serve CRI is not an error.
func Ask(ctx context.Context, conn grpc.ClientConnInterface) (Status, error) {
	st, err := runtime.NewRuntimeServiceClient(conn).Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err = native(err); err != nil {
		if errdefs.IsNotImplemented(err) {
			err = nil
		}
		return Status{}, err
	}
	out := Status{Served: true}
	for _, cond := range st.GetStatus().GetConditions() {
		if cond.GetType() == "RuntimeReady" && !cond.GetStatus() {
			out.Reason = strings.TrimSpace(cond.GetReason() + " " + cond.GetMessage())
		}
	}
	var config struct {
		Containerd struct {
			Snapshotter string `json:"snapshotter"`
			Discards    bool   `json:"discardUnpackedLayers"`
		} `json:"containerd"`
	}
	if json.Unmarshal([]byte(st.GetInfo()["config"]), &config) == nil {
		out.Discards, out.Snapshotter = config.Containerd.Discards, config.Containerd.Snapshotter
	}
	return out, nil
}

// Snapshotter is the one that CRI unpacks images into: what its verbose status says, else
// the path of its image file system (…/io.containerd.snapshotter.v1.NAME). It is empty where
// neither tells, or where the socket serves no CRI.
func Snapshotter(ctx context.Context, conn grpc.ClientConnInterface) (string, error) {
	if st, err := Ask(ctx, conn); err == nil && st.Snapshotter != "" {
		return st.Snapshotter, nil
	}
	info, err := runtime.NewImageServiceClient(conn).ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err = native(err); err != nil {
		if errdefs.IsNotImplemented(err) {
			err = nil
		}
		return "", err
	}
	for _, f := range info.GetImageFilesystems() {
		if name, ok := strings.CutPrefix(path.Base(f.GetFsId().GetMountpoint()), "io.containerd.snapshotter.v1."); ok && name != "" {
			return name, nil
		}
	}
	return "", nil
}

// ImageID is the id of the image that CRI has under ref: the digest of its config, empty
// where it has none. Where the socket serves no CRI the error is errdefs.ErrNotImplemented.
func ImageID(ctx context.Context, conn grpc.ClientConnInterface, ref string) (string, error) {
	resp, err := runtime.NewImageServiceClient(conn).ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return "", native(err)
	}
	return resp.GetImage().GetId(), nil
}

// native turns a status of gRPC into an error of errdefs.
func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}
