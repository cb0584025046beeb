package p2p

import (
	"context"
	"net"
	"path/filepath"

	"seeder/p2p/announce"
	"seeder/p2p/catalog"
	"seeder/p2p/converge"
	"seeder/p2p/diagnose"
	"seeder/p2p/exchange"
	"seeder/p2p/fetch"
	"seeder/p2p/gossip"
	"seeder/p2p/images"
	"seeder/p2p/matrix"
	"seeder/p2p/members"
	"seeder/p2p/report"
	"seeder/p2p/trust"
	"seeder/p2p/wire"
)

// assemble makes the parts of a node, which hear of each other by what is handed to them
// here and by nothing else, and returns the loops that are to run. Nothing runs yet.
func (n *Node) assemble(id *trust.Identity, counters *metrics) []loop {
	var converging *converge.Loop // woken by nothing that runs before Open has made it
	n.gossip = gossip.New(n.gossipConfig(id))
	health := &health{store: n.store, events: &n.events, recovered: func() { converging.Recovered() }, log: n.log}
	n.members = members.New(n.gossip, n.cfg.Name, n.cfg.Labels, func() report.Host { return hostOf(n.cfg.DataDir, health) })
	offers, deltas := n.cfg.deltas()
	n.images = images.New(images.Config{
		Offers: offers, Store: n.store, Refused: counters.putOff, Lost: func() { converging.Wake() }, NameOf: n.members.NameOf, Log: n.log,
	})
	column := matrix.NewColumn(n.images.SentBytes)
	n.exchange = exchange.New(exchange.Config{
		Catalog: n.catalog, Members: n.members, Client: n.port.client, Gossip: n.gossip, Serve: n.images.SetServed,
		Changed: func() { converging.Wake() }, News: n.events.news, Beat: func() { n.run.beat("sync") }, Log: n.log,
	})
	rule := announce.Rule{Announcers: n.cfg.Announcers, Excluded: n.cfg.Excluded}
	n.announcer = announce.New(announce.Config{
		Identity: id, Name: n.cfg.Name, Rule: rule, Catalog: n.catalog, Store: n.store, Conflicts: n.members.Conflicts,
		Published: func(rec catalog.Record) {
			n.exchange.Published(rec)
			converging.Published()
			if a := rec.Announcement(); n.cfg.Published != nil && !a.Withdrawn {
				n.cfg.Published(a.Reference, a.Version)
			}
		},
		Confirmed: func() { converging.Wake() }, Withhold: n.images.Withhold, Log: n.log,
	})
	fetcher := fetch.New(fetch.Config{
		Deltas: deltas, History: n.catalog.History,
		ID: id.ID(), Images: n.images, Store: n.store, Column: column, Members: n.members, Client: n.port.client,
		Metrics: fetch.NewMetrics(n.cfg.Registerer), Note: n.events.record, Announce: n.announcer.Again,
		Log: n.log, SwarmLog: n.cfg.Log.With("component", "swarm"),
	})
	converging = converge.New(converge.Config{
		Catalog: n.catalog, Store: n.store, Keeper: n.store, Remover: n.store, Column: column, Seeds: fetcher,
		Fetch: fetcher.Fetch, Announce: n.announcer.Again, MayAnnounce: func() bool { return rule.Allows(id.ID()) },
		Down:   health.stillDown,
		Note:   func(kind report.EventKind, a catalog.Announcement, reason string) { n.events.record(kind, a, reason) },
		Failed: func(cause string) { counters.converge.WithLabelValues(cause).Inc() },
		Beat:   func() { n.run.beat("converge") },
		Self:   id.ID(), Labels: n.cfg.Labels, Accept: n.cfg.Accept, Follow: n.cfg.Follow, Auto: n.cfg.Auto, AutoLocal: n.cfg.AutoLocal,
		KeepPrevious: n.cfg.KeepPrevious, Pinned: n.cfg.Pinned, Log: n.log,
	})
	janitor := &janitor{dir: n.cfg.DataDir, store: n.store, catalog: n.catalog, images: n.images, health: health, loop: converging, log: n.log}
	n.matrix = matrix.New(matrix.Config{
		ID: id.ID(), Version: n.cfg.Version, Catalog: n.catalog, Members: n.members, Images: n.images, Store: n.store, Column: column,
		Client: n.port.client, Health: health, Policy: policyOf(n.cfg, rule, n.port.limiter.Limits), Disk: janitor.diskStatus, Blocked: n.cfg.Blocked,
	})
	n.diagnoser = diagnose.New(diagnose.Config{
		Members: n.members, Client: n.port.client, Gossip: n.gossip, Store: n.store,
		Policy: n.matrix.Policy, Policies: n.matrix.Policies, Log: n.log,
	})
	n.port.answerBy(n.cfg, wire.Handlers{
		Matrix: n.matrix, Catalog: n.exchange, Images: n.images, Owner: fetcher, Prober: n.diagnoser, Deltas: n.images,
	}, n.gossip)
	return []loop{
		{"converge", func(ctx context.Context) {
			converging.Run(ctx)
			fetcher.Wait()
		}},
		{"sync", n.exchange.Follow}, {"pull", n.exchange.Pull}, {"janitor", janitor.run},
		{"health", func(ctx context.Context) { health.watch(ctx, func() { n.run.beat("health") }) }},
		{"expire", n.port.expire}, {"members", n.matrix.Run},
	}
}

func (n *Node) gossipConfig(id *trust.Identity) gossip.Config {
	cfg := gossip.Config{
		NodeName:      n.cfg.Name,
		BindAddr:      n.cfg.GossipBind,
		Advertise:     n.cfg.Advertise,
		AdvertisePort: n.cfg.AdvertisePort,
		Changes:       n.cfg.Changes,
		Join:          n.cfg.Join,
		JoinPort:      n.port.listener.Addr().(*net.TCPAddr).Port,
		Keys:          n.cfg.Secrets.GossipKeys(),
		Identity:      id,
		Meta: gossip.Meta{
			ID:              id.ID(),
			TransferAddress: n.port.advertised(n.cfg.TransferBind, n.cfg.TransferAdvertise),
			Protocol:        n.cfg.Protocols.Newest,
			Oldest:          n.cfg.Protocols.Oldest,
			Version:         n.cfg.Version,
		},
		PeersFile: filepath.Join(n.cfg.DataDir, "members.json"),
		Dial:      n.port.client.DialGossip,
		Log:       n.cfg.Log.With("component", "gossip"),
		OnHint:    func(h gossip.Hint) { n.exchange.Hint(h) },
		OnCatalog: func(member string, hash uint64) { n.exchange.Summary(member, hash) },
		OnMember:  n.events.onMember,
		OnMoved: func(member, before string) {
			if member == n.cfg.Name {
				before = ""
			}
			n.port.moved(before)
		},
	}
	if n.cfg.Network != nil {
		cfg.Listen = n.cfg.Network.ListenPacket
	}
	return cfg
}

// policyOf is what a node with this configuration takes and sends, as asked for.
func policyOf(cfg Config, rule announce.Rule, limits func() (upload, download int64)) func() report.Policy {
	return func() report.Policy {
		p := report.Policy{Accept: cfg.Accept.Strings(), Announcers: rule.Strings()}
		p.UploadLimit, p.DownloadLimit = limits()
		return p
	}
}
