package doctor

import (
	"context"
	"errors"
	"io/fs"

	"seeder/cmd/seeder/internal/registry"
)

// checkRegistry looks whether containerd asks the registry of registry.bind.
func (e *exam) checkRegistry(ctx context.Context) []finding {
	f := finding{Name: "registry", State: StateOK, Subject: e.loaded.Registry.Bind}
	if e.configErr != nil {
		f.State, f.Detail = StateSkipped, "the configuration is invalid"
		return one(f)
	}
	if f.Subject == "" {
		f.Detail = "off: pods with the policy Always ask the registry of their image"
		return one(f)
	}
	problem, fix, err := registry.InForce(ctx, e.root, e.loaded.Config)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return one(needsRoot(f.Name, f.Subject))
	case errors.Is(err, fs.ErrNotExist):
		f.State, f.Detail, f.Fix = stateProblem, "it has no credentials: the daemon has not started with registry.bind", "systemctl restart seeder"
	case err != nil:
		f.State, f.Detail = StateSkipped, err.Error()
	case problem != "":
		f.State, f.Detail, f.Fix = stateProblem, problem, fix
	default:
		f.Detail = "containerd asks it before the registries of images"
	}
	return one(f)
}
