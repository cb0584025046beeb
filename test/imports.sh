#!/bin/sh
# Fails where a package imports one of this module that its line below does not name, and
# where an outside library has more importers than it is meant to have. Tests, and packages
# whose name ends in test, are free.
#
# Rules behind the table: p2p never imports store but its leaf store/chunk, and store never
# p2p; they meet in cmd/seeder/wiring.go alone. A package never imports the one above it.
# What shows a cluster (doctor, show, verdict, web) knows p2p/report and control, never the
# node; doctor alone also tries ways of its own (wire, trust, netaddr). internal/ and the
# leaves p2p/report and store/chunk know nothing of seeder.
set -eu
cd "$(dirname "$0")/.."

table() { # package: those of this module that it may import
	cat <<-'EOF'
	internal/disk:
	internal/figure:
	internal/pattern:
	internal/reserve:
	internal/text:
	internal/wait:

	store: internal/disk internal/figure internal/wait store/archive store/arriving store/artifact store/chunk store/ctrd store/delta store/export store/imageref store/offers store/pace store/stage store/unpack
	store/archive: internal/figure store/artifact store/delta store/imageref
	store/arriving: store/chunk
	store/artifact:
	store/chunk:
	store/blobfile:
	store/ctrd: internal/text internal/wait store/artifact store/blobfile store/ctrd/cri store/ctrd/embedded store/ctrd/ingest store/grpcerr store/imageref store/unpack
	store/ctrd/cri:
	store/ctrd/embedded: internal/disk
	store/ctrd/ingest:
	store/ctrd/sockettest:
	store/delta:
	store/export: store/archive store/artifact store/chunk store/delta
	store/grpcerr:
	store/imageref:
	store/offers: internal/disk store/chunk store/delta
	store/pace: store/chunk
	store/source:
	store/stage: store/chunk
	store/unpack: internal/wait

	p2p: internal/pattern internal/reserve internal/text p2p/announce p2p/catalog p2p/converge p2p/diagnose p2p/exchange p2p/fetch p2p/gossip p2p/images p2p/matrix p2p/members p2p/netaddr p2p/report p2p/swarm p2p/trust p2p/wire store/chunk
	p2p/announce: p2p/catalog p2p/report p2p/trust store/chunk
	p2p/catalog: internal/disk internal/text internal/wait p2p/trust store/chunk
	p2p/converge: internal/pattern internal/wait p2p/catalog p2p/report p2p/trust
	p2p/diagnose: internal/text p2p/gossip p2p/members p2p/report p2p/swarm p2p/trust p2p/wire
	p2p/exchange: internal/wait p2p/catalog p2p/gossip p2p/members p2p/wire
	p2p/fetch: internal/figure p2p/catalog p2p/converge p2p/gossip p2p/images p2p/members p2p/report p2p/swarm p2p/tally p2p/trust store/chunk
	p2p/gossip: internal/disk internal/text internal/wait p2p/gossip/wall p2p/netaddr p2p/report p2p/trust
	p2p/gossip/wall: internal/text internal/wait p2p/report
	p2p/images: p2p/swarm store/chunk
	p2p/matrix: internal/text p2p/catalog p2p/gossip p2p/images p2p/members p2p/report p2p/tally p2p/trust store/chunk
	p2p/members: p2p/gossip p2p/report p2p/swarm p2p/trust
	p2p/netaddr:
	p2p/report:
	p2p/swarm: internal/wait store/chunk
	p2p/tally: p2p/report
	p2p/trust: internal/disk
	p2p/wire: internal/text p2p/catalog p2p/swarm p2p/trust store/chunk

	cmd/seeder: cmd/seeder/internal/* internal/pattern internal/text p2p p2p/netaddr p2p/report p2p/trust store store/ctrd store/export
	cmd/seeder/internal/cli: internal/text
	cmd/seeder/internal/config: cmd/seeder/internal/cli internal/pattern internal/text p2p/netaddr p2p/trust
	cmd/seeder/internal/control: cmd/seeder/internal/cli cmd/seeder/internal/config cmd/seeder/internal/verdict internal/reserve internal/text internal/wait p2p/report store/artifact
	cmd/seeder/internal/datadir: cmd/seeder/internal/cli internal/disk
	cmd/seeder/internal/demo: cmd/seeder/internal/cli cmd/seeder/internal/config cmd/seeder/internal/control cmd/seeder/internal/show cmd/seeder/internal/term p2p/report p2p/trust
	cmd/seeder/internal/doctor: cmd/seeder/internal/cli cmd/seeder/internal/config cmd/seeder/internal/control cmd/seeder/internal/engines cmd/seeder/internal/k3s cmd/seeder/internal/kubelet cmd/seeder/internal/pods cmd/seeder/internal/registry cmd/seeder/internal/term internal/text p2p/netaddr p2p/report p2p/trust p2p/wire store store/ctrd
	cmd/seeder/internal/engines: cmd/seeder/internal/cli store/source
	cmd/seeder/internal/export: cmd/seeder/internal/cli cmd/seeder/internal/control cmd/seeder/internal/term
	cmd/seeder/internal/k3s: cmd/seeder/internal/cli cmd/seeder/internal/config p2p/netaddr p2p/trust store/ctrd
	cmd/seeder/internal/kubelet: cmd/seeder/internal/cli
	cmd/seeder/internal/listen:
	cmd/seeder/internal/pods: cmd/seeder/internal/cli p2p/report
	cmd/seeder/internal/push: cmd/seeder/internal/cli cmd/seeder/internal/control cmd/seeder/internal/engines cmd/seeder/internal/show cmd/seeder/internal/term store/archive store/chunk
	cmd/seeder/internal/registry: cmd/seeder/internal/cli cmd/seeder/internal/config cmd/seeder/internal/listen internal/disk p2p/report
	cmd/seeder/internal/reload: cmd/seeder/internal/config cmd/seeder/internal/control cmd/seeder/internal/k3s p2p/trust
	cmd/seeder/internal/rollout: p2p/report
	cmd/seeder/internal/show: cmd/seeder/internal/cli cmd/seeder/internal/control cmd/seeder/internal/term cmd/seeder/internal/verdict internal/text p2p/report
	cmd/seeder/internal/systemd: cmd/seeder/internal/control cmd/seeder/internal/show p2p/report
	cmd/seeder/internal/term: cmd/seeder/internal/cli internal/figure internal/text
	cmd/seeder/internal/verdict: cmd/seeder/internal/cli internal/text p2p/report
	cmd/seeder/internal/web: cmd/seeder/internal/cli cmd/seeder/internal/config cmd/seeder/internal/control cmd/seeder/internal/listen cmd/seeder/internal/pods cmd/seeder/internal/show cmd/seeder/internal/term cmd/seeder/internal/verdict internal/text p2p/report store
	EOF
}

imports=$(go list -f '{{$p := .ImportPath}}{{$p}}
{{range .Imports}}{{$p}} {{.}}
{{end}}' ./cmd/... ./internal/... ./p2p/... ./store/...)
bad=0

arrows=$(printf '%s\n' "$imports" | awk -v table="$(table)" '
	BEGIN {
		n = split(table, lines, "\n")
		for (i = 1; i <= n; i++) {
			if (split(lines[i], parts, ":") < 2) continue
			known[parts[1]] = 1
			m = split(parts[2], may, " ")
			for (j = 1; j <= m; j++) allowed[parts[1] " " may[j]] = 1
		}
	}
	{ sub("^seeder/", "", $1) }
	$1 ~ /test$/ { next }
	NF == 1 { if (!known[$1]) print $1 " has no line in the table of test/imports.sh: add what it may import"; next }
	NF == 2 && $2 ~ /^seeder\// {
		sub("^seeder/", "", $2)
		inside = $2; sub("[^/]*$", "*", inside)
		if (!allowed[$1 " " $2] && !allowed[$1 " " inside]) print $1 " must not import " $2
	}')
[ -z "$arrows" ] || { echo "$arrows"; bad=1; }

only() { # import pattern, the package that may
	found=$(printf '%s\n' "$imports" | grep -E " $1" | grep -vE "^$2 " || true)
	[ -z "$found" ] || { echo "only $2 imports $1:"; echo "$found"; bad=1; }
}

only 'github.com/hashicorp/memberlist' 'seeder/p2p/gossip(/wall)?'
only 'github.com/vishvananda/netlink' 'seeder/p2p/netaddr'
only 'cuelabs.dev/go/oci' 'seeder/cmd/seeder/internal/registry'
only 'github.com/spf13/viper' 'seeder/cmd/seeder/internal/config'
only 'github.com/agext/levenshtein' 'seeder/internal/text'
only 'github.com/containerd/containerd' 'seeder/store/(archive|artifact|ctrd(/(embedded|ingest))?|storetest|unpack)' # the suite that tests ctrd
only 'k8s.io/cri-api' 'seeder/store/ctrd/cri'

# file NAME DIR PATTERN...: only that file of DIR imports all of the patterns.
file() {
	want=$1 found=$(ls "$2"/*.go | grep -v _test.go)
	shift 2
	for pattern; do
		found=$(printf '%s\n' "$found" | xargs -r grep -lE "$pattern" || true)
	done
	[ "$found" = "$want" ] || { echo "$* is imported by $found, not by $want alone"; bad=1; }
}
file cmd/seeder/wiring.go cmd/seeder '"seeder/p2p"' '"seeder/store"'
file cmd/seeder/internal/config/config.go cmd/seeder/internal/config 'spf13/viper'
exit $bad
