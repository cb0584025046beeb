#!/bin/bash
# Runs FRESH_TARGETS of the last commit (make demo, then make test) on each release of
# Debian in FRESH_RELEASES, in a root that debootstrap has just made and that has
# nothing but make, git, certificates and this machine's Go. Uncommitted changes are
# not tested. Everything is in one directory, in cgroups and in name spaces of its own,
# which end with the run, so nothing is left behind, and other runs of the tests of hosts
# on this machine are not disturbed. Needs root, the network and some 6 GB.
#
#   FRESH_MIRROR   where debootstrap gets Debian: that of this machine's apt
#   FRESH_CACHES   1: begin with this machine's Go modules and build results (they are
#                  not changed); else all is downloaded and built, as on a new machine
#   FRESH_GO       the version of Go to begin with, as 1.21.0: that of this machine
#   FRESH_TIMEOUT  of one release, as timeout(1) has it
#   FUZZTIME       as make has it
set -euo pipefail

FRESH_RELEASES=${FRESH_RELEASES:-bookworm trixie}
FRESH_TARGETS=${FRESH_TARGETS:-demo test}
FRESH_TIMEOUT=${FRESH_TIMEOUT:-3h}
FRESH_CACHES=${FRESH_CACHES:-}

# cgroups prints where the hierarchies are mounted: one of cgroup v2, or one for each
# controller of v1.
cgroups() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

# make_cgroups makes the run's own group in each hierarchy, with what new groups lack.
make_cgroups() {
	local m f
	for m in $(cgroups); do
		mkdir "$m/$1"
		for f in cpuset.cpus cpuset.mems; do # empty in a new group of v1
			[ ! -e "$m/$f" ] || cat "$m/$f" >"$m/$1/$f"
		done
	done
}

# remove_cgroups waits for the processes in them, which have been killed, to be gone.
remove_cgroups() {
	local m n=0
	for m in $(cgroups); do
		while [ -d "$m/$1" ] && ! find "$m/$1" -depth -type d -exec rmdir {} + 2>/dev/null; do
			n=$((n + 1))
			[ $n -lt 100 ] || { echo "cgroup $m/$1 is left behind" >&2; break; }
			sleep 0.1
		done
	done
}

if [ "${1-}" = "" ]; then
	cd "$(dirname "$0")/.."
	if [ "$(id -u)" != 0 ]; then
		echo "fresh.sh needs root: it makes roots and name spaces" >&2
		exit 1
	fi
	command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap
	FRESH_MIRROR=${FRESH_MIRROR:-$(apt-cache policy base-files | awk '$2 ~ /^https?:/ { print $2; exit }')}
	if [ -z "$FRESH_MIRROR" ]; then
		echo "apt's configuration names no mirror of Debian: set FRESH_MIRROR" >&2
		exit 1
	fi
	dir=$(mktemp -d "${TMPDIR:-/tmp}/seeder-fresh-XXXXXX")
	group=$(basename "$dir")
	trap 'rm -rf --one-file-system "$dir"; remove_cgroups "$group"' EXIT
	make_cgroups "$group"
	FRESH_GOROOT=$(cd / && GOTOOLCHAIN=${FRESH_GO:+go$FRESH_GO} go env GOROOT)
	FRESH_GOMODCACHE=$(go env GOMODCACHE) FRESH_GOCACHE=$(go env GOCACHE)
	GOPROXY=$(go env GOPROXY) GOSUMDB=$(go env GOSUMDB)
	export FRESH_MIRROR FRESH_RELEASES FRESH_TARGETS FRESH_CACHES FRESH_GOROOT FRESH_GOMODCACHE FRESH_GOCACHE GOPROXY GOSUMDB
	failed=
	for release in $FRESH_RELEASES; do
		root=$dir/$release
		mkdir "$root"
		echo "== $release: debootstrap"
		# In a mount name space: it leaves /proc mounted in the root.
		timeout 30m unshare --mount debootstrap --variant=minbase --include=make,git,ca-certificates "$release" "$root" "$FRESH_MIRROR" >"$dir/$release.log" 2>&1 ||
			{ tail -5 "$dir/$release.log"; failed="$failed $release"; continue; }
		# A root that is removed anyway need not be safe from a power cut.
		echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
		git clone -q . "$root/root/seeder"
		# Ending the first process of the pid name space ends all others, and with the last
		# one the mounts are gone.
		timeout --kill-after=1m "$FRESH_TIMEOUT" unshare --mount --pid --fork --kill-child "$0" group "$group" "$root" || failed="$failed $release"
		rm -rf --one-file-system "$root"
	done
	[ -z "$failed" ] || { echo "FAIL:$failed"; exit 1; }
	echo "ok: $FRESH_TARGETS on $FRESH_RELEASES"
	exit 0
fi

# The first process of the pid name space moves into the run's cgroups, and then on to
# where it sees no others.
if [ "$1" = group ]; then
	for m in $(cgroups); do
		echo 0 >"$m/$2/cgroup.procs"
	done
	exec unshare --cgroup "$0" inside "$2" "$3"
fi

group=$2
root=$3
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mkdir -p usr/local/go caches old
mount --bind "$FRESH_GOROOT" usr/local/go
mount -o remount,bind,ro usr/local/go
mount -t proc proc proc
mount --rbind /sys sys
for m in $(cgroups); do
	case $m in "$root"/*) continue ;; esac
	umount "${m#/}" # not below the other one: all would see two
	mount --bind "$m/$group" "${m#/}"
	if [ -e "$m/$group/cgroup.subtree_control" ]; then # v2 has processes in the innermost groups only
		mkdir -p "$m/$group/run"
		echo 0 >"$m/$group/run/cgroup.procs"
		sed 's/[^ ][^ ]*/+&/g' "$m/$group/cgroup.controllers" >"$m/$group/cgroup.subtree_control"
	fi
done
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
cp -L /etc/resolv.conf etc/resolv.conf
# A proxy may have a certificate of its own.
cat /etc/ssl/certs/ca-certificates.crt >etc/ssl/certs/ca-certificates.crt
mkdir -p root/go/pkg/mod root/.cache/go-build
if [ -n "$FRESH_CACHES" ]; then
	for pair in "$FRESH_GOMODCACHE root/go/pkg/mod" "$FRESH_GOCACHE root/.cache/go-build"; do
		read -r from to <<<"$pair"
		[ -d "$from" ] || continue # this machine has built nothing yet
		mkdir -p "caches/${to##*/}/up" "caches/${to##*/}/work"
		mount -t overlay overlay -o "lowerdir=$from,upperdir=caches/${to##*/}/up,workdir=caches/${to##*/}/work" "$to"
	done
fi
pivot_root . old
umount -l /old
exec </dev/null
for target in $FRESH_TARGETS; do
	echo "== $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release): make $target"
	env -i HOME=/root PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
		GOPROXY="$GOPROXY" GOSUMDB="$GOSUMDB" GOTOOLCHAIN=auto ${FUZZTIME:+FUZZTIME="$FUZZTIME"} ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
		make -C /root/seeder "$target"
done
