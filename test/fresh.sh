#!/bin/bash
# Runs FRESH_TARGETS of the last commit (make demo, then make test) on each release of
# Debian in FRESH_RELEASES, in a root that debootstrap has just made and that has
# nothing but make, git, certificates and this machine's Go. Uncommitted changes are
# not tested. Everything lies in one directory and in name spaces of its own, which end
# with the run, so nothing is left behind. Needs root, the network and some 6 GB, and that
# nobody else runs the tests of ./test on this machine: they remove the cgroups of runs
# whose process they do not see.
#
#   FRESH_MIRROR   where debootstrap gets Debian: that of this machine's apt
#   FRESH_CACHES   1: begin with this machine's Go modules and build results (they are
#                  not changed); else all is downloaded and built, as on a new machine
#   FRESH_TIMEOUT  of one release, as timeout(1) has it
set -euo pipefail

FRESH_RELEASES=${FRESH_RELEASES:-bookworm trixie}
FRESH_TARGETS=${FRESH_TARGETS:-demo test}
FRESH_TIMEOUT=${FRESH_TIMEOUT:-3h}
FRESH_CACHES=${FRESH_CACHES:-}

if [ "${1-}" != inside ]; then
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
	trap 'rm -rf --one-file-system "$dir"' EXIT
	FRESH_GOROOT=$(go env GOROOT) FRESH_GOMODCACHE=$(go env GOMODCACHE) FRESH_GOCACHE=$(go env GOCACHE)
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
		git clone -q . "$root/root/seeder"
		# Ending the first process of the pid name space ends all others, and with the last
		# one the mounts are gone.
		timeout --kill-after=1m "$FRESH_TIMEOUT" unshare --mount --pid --fork --kill-child "$0" inside "$root" || failed="$failed $release"
		rm -rf --one-file-system "$root"
	done
	[ -z "$failed" ] || { echo "FAIL:$failed"; exit 1; }
	echo "ok: $FRESH_TARGETS on $FRESH_RELEASES"
	exit 0
fi

root=$2
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mkdir -p usr/local/go caches old
mount --bind "$FRESH_GOROOT" usr/local/go
mount -o remount,bind,ro usr/local/go
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
cp -L /etc/resolv.conf etc/resolv.conf
# A proxy may have a certificate of its own.
cat /etc/ssl/certs/ca-certificates.crt >etc/ssl/certs/ca-certificates.crt
mkdir -p root/go/pkg/mod root/.cache/go-build
if [ -n "$FRESH_CACHES" ]; then
	for pair in "$FRESH_GOMODCACHE root/go/pkg/mod" "$FRESH_GOCACHE root/.cache/go-build"; do
		read -r from to <<<"$pair"
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
		GOPROXY="$GOPROXY" GOSUMDB="$GOSUMDB" ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
		make -C /root/seeder "$target"
done
