package doctor

import (
	"context"
	"errors"
	"sync"
	"time"

	"seeder/cmd/seeder/internal/cli"
	"seeder/cmd/seeder/internal/config"
	"seeder/cmd/seeder/internal/control"
	"seeder/cmd/seeder/internal/k3s"
	"seeder/store/ctrd"
)

// askedTimeout is how long the daemon may take to say it: what it says is at hand.
const askedTimeout = 3 * time.Second

// exam is one examination of this host.
type exam struct {
	env        *cli.Env
	root       string // of the files that are looked at
	kubeconfig string

	loaded    config.Loaded
	configErr error
	client    *control.Client

	daemonOnce sync.Once
	daemon     control.Self
	daemonErr  error

	portsOnce sync.Once
	ports     []finding

	ctrdOnce sync.Once
	ctrd     *ctrd.Containerd
	ctrdErr  error
}

func newExam(env *cli.Env, kubeconfig string) *exam {
	e := &exam{env: env, root: "/", kubeconfig: kubeconfig}
	e.loaded, e.configErr = config.Load(env, nil)
	socket := env.Socket
	if socket == "" {
		socket = e.loaded.API.Socket
	}
	e.client = control.Dial(socket)
	return e
}

func (e *exam) checks() []check {
	return []check{
		{"config", e.checkConfig}, {"daemon", e.checkDaemon}, {"ports", e.checkPorts},
		{"secret", e.checkSecret}, {"join", e.checkJoin},
		{"containerd", e.checkContainerd}, {"namespace", e.checkNamespace}, {"cri", e.checkCRI}, {"layers", e.checkLayers},
		{"kubelet", e.checkKubelet}, {"registry", e.checkRegistry}, {"disk", e.checkDisk}, {"members", e.checkMembers}, {"pods", e.checkPods},
	}
}

// ask is what the daemon says; it is asked once.
func (e *exam) ask(ctx context.Context) (control.Self, error) {
	e.daemonOnce.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, askedTimeout)
		defer cancel()
		e.daemonErr = e.client.Get(ctx, "/v1/self", nil, &e.daemon)
	})
	return e.daemon, e.daemonErr
}

// running reports whether there is a daemon, even one that cannot be asked.
func (e *exam) running(ctx context.Context) bool {
	_, err := e.ask(ctx)
	return err == nil || cli.ExitCode(err) != cli.ExitNoDaemon
}

// config is what is in use: the daemon's where one runs, since that may have been
// started with flags, else what it would find.
func (e *exam) config(ctx context.Context) config.Config {
	if d, err := e.ask(ctx); err == nil {
		return d.Pending.Config
	}
	return e.loaded.Config
}

var errEmbedded = errors.New("containerd.address is embedded: this node keeps images for others and runs none")

// containerd is a connection of its own to this host's containerd.
func (e *exam) containerd(ctx context.Context) (*ctrd.Containerd, error) {
	e.ctrdOnce.Do(func() {
		cfg := e.config(ctx)
		if cfg.Containerd.Address == ctrd.Embedded {
			e.ctrdErr = errEmbedded // its files are the daemon's alone
			return
		}
		platform := cfg.Containerd.Platform
		if platform == ctrd.Auto {
			platform = ""
		}
		e.ctrd, e.ctrdErr = ctrd.Open(ctrd.Config{
			Address: cfg.Containerd.Address, Namespace: cfg.Containerd.Namespace, Platform: platform, Find: k3s.SocketFinder(e.root),
		})
	})
	return e.ctrd, e.ctrdErr
}

// one is a single finding as a list.
func one(f finding) []finding { return []finding{f} }
