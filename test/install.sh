#!/bin/sh
# Installs what the tests need, if it is not there: Debian's containerd 1.6 and
# runc, iproute2 (name spaces, shaped links), nftables (lost packets), util-linux (unshare, nsenter),
# busybox-static (the test image runs it), gcc (the race detector); and the programs
# named as arguments, each from the package of its name.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need containerd containerd
need ctr containerd
need runc runc
need ip iproute2
need tc iproute2
need unshare util-linux
need nsenter util-linux
need busybox busybox-static
need nft nftables
need gcc gcc
need git git
for program in "$@"; do need "$program" "$program"; done
[ -f /usr/include/stdlib.h ] || missing="$missing libc6-dev"
[ -f /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "the tests need:$missing; this is no Debian, install them by hand" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "the tests need:$missing; run as root: apt-get install$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq --no-install-recommends $missing
