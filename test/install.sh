#!/bin/sh
# Installs what the tests need, if it is not there: Debian's containerd 1.6 and
# runc, iproute2 (name spaces, shaped links), nftables (lost packets), util-linux (unshare, nsenter),
# busybox-static (the test image runs it), Chromium and a font (the status page), gcc (the race
# detector), podman, mandoc (checks the man pages), systemd and rpm (the hosts that boot have
# it; on this machine systemd starts nothing); and the
# programs named as arguments, each from the package of its name. Debian's dockerd is
# unpacked to bin/docker, and its promtool to bin/prometheus, since their packages would
# start a daemon on this machine.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need containerd containerd
need ctr containerd
need zstd zstd # this and Python are for a client of the protocol in another language
/usr/bin/python3 -c 'import cryptography' 2>/dev/null || missing="$missing python3-cryptography"
need runc runc
need ip iproute2
need tc iproute2
need unshare util-linux
need nsenter util-linux
need busybox busybox-static
need nft nftables
need gcc gcc
need git git
need podman podman
need kubectl kubernetes-client
need dpkg-deb dpkg
need mandoc mandoc
need chromium chromium
need rpm rpm
need systemd-analyze systemd
need systemctl systemd
need setpriv util-linux
for program in "$@"; do need "$program" "$program"; done
[ -f /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || missing="$missing fonts-dejavu-core"
[ -f /usr/include/stdlib.h ] || missing="$missing libc6-dev"
[ -f /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

docker="$(cd "$(dirname "$0")/.." && pwd)/bin/docker"
prometheus="${docker%/docker}/prometheus"
[ -x "$docker/usr/sbin/dockerd" ] && [ -x "$prometheus/promtool" ] && [ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
	echo "the tests need:$missing; this is no Debian, install them by hand" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "the tests need:$missing, dockerd in bin/docker and promtool in bin/prometheus; run this as root: apt-get install$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [ -n "$missing" ]; then
	echo "installing:$missing"
	# shellcheck disable=SC2086 # a list of packages
	apt-get install -y -qq --no-install-recommends $missing
fi
if [ ! -x "$docker/usr/sbin/dockerd" ]; then
	echo "unpacking docker.io to bin/docker"
	mkdir -p "$docker.part"
	(cd "$docker.part" && apt-get download -qq docker.io)
	dpkg-deb -x "$docker.part"/docker.io_*.deb "$docker.part"
	rm -rf "$docker.part"/docker.io_*.deb "$docker"
	mv "$docker.part" "$docker"
fi
if [ ! -x "$prometheus/promtool" ]; then
	echo "unpacking promtool to bin/prometheus"
	rm -rf "$prometheus.part"
	mkdir -p "$prometheus.part"
	(cd "$prometheus.part" && apt-get download -qq prometheus)
	dpkg-deb --fsys-tarfile "$prometheus.part"/prometheus_*.deb | tar -x -C "$prometheus.part" --strip-components=3 ./usr/bin/promtool
	rm -rf "$prometheus.part"/prometheus_*.deb "$prometheus"
	mv "$prometheus.part" "$prometheus"
fi
