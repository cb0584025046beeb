#!/bin/sh
# Fails where a package imports what it must not: p2p and store meet in cmd/seeder
# alone, and each outside library that others lean on has one importer. Tests are
# free.
set -eu

imports=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}
{{end}}' ./cmd/... ./internal/... ./p2p/... ./store/...)
bad=0

forbid() { # package pattern, import pattern, rule
	found=$(printf '%s\n' "$imports" | grep -E "^$1 $2" || true)
	[ -z "$found" ] || { echo "$3:"; echo "$found"; bad=1; }
}
only() { # import pattern, the package that may
	found=$(printf '%s\n' "$imports" | grep -E " $1" | grep -vE "^$2 " || true)
	[ -z "$found" ] || { echo "only $2 imports $1:"; echo "$found"; bad=1; }
}

forbid 'seeder/p2p[^ ]*' 'seeder/(cmd|store(/(ctrd|source|stage|storetest).*)?$)' 'p2p imports nothing of store but store/chunk'
forbid 'seeder/store/chunk' 'seeder/' 'store/chunk is a leaf: formats and bounds that both sides share'
forbid 'seeder/store[^ ]*' 'seeder/(p2p|cmd)' 'store never imports p2p'
forbid 'seeder/internal/disk[^ ]*' 'seeder/(p2p|store|cmd)' 'disk knows nothing of what is in the files'
forbid 'seeder/internal/[^ ]*' 'seeder/' 'internal/ knows nothing of seeder'
forbid 'seeder/p2p/report' 'seeder/' 'p2p/report is plain data'
forbid 'seeder/p2p/converge' 'seeder/p2p/(gossip|swarm|wire|netaddr)' 'converge knows no peers'
forbid 'seeder/p2p/(announce|catalog|converge|diagnose|exchange|fetch|gossip|images|matrix|members|netaddr|report|swarm|tally|trust|wire)' 'seeder/p2p$' 'a room of p2p never imports the house'
forbid 'seeder/cmd/seeder/internal/(cli|term)' 'seeder/(p2p|store)' 'what commands share knows no node'
forbid 'seeder/cmd/seeder/internal/(doctor|show|verdict|web)' 'seeder/p2p$' 'what shows a cluster knows p2p/report, not the node'
only 'github.com/hashicorp/memberlist' 'seeder/p2p/gossip'
only 'github.com/vishvananda/netlink' 'seeder/p2p/netaddr'
only 'github.com/spf13/viper' 'seeder/cmd/seeder/internal/config'
only 'github.com/containerd/containerd' 'seeder/store/(ctrd|storetest)' # the suite that tests ctrd
only 'k8s.io/cri-api' 'seeder/store/ctrd'

viper=$(grep -rl --include='*.go' spf13/viper cmd | grep -v _test.go)
[ "$viper" = cmd/seeder/internal/config/config.go ] || { echo "viper is imported by $viper, not by cmd/seeder/internal/config/config.go alone"; bad=1; }
exit $bad
