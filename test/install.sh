#!/bin/sh
# Installs what the tests need on Debian 12 and 13, if it is not there: runc, iproute2
# (name spaces, shaped links), nftables (lost packets), util-linux (unshare, nsenter),
# busybox-static (the test image runs it), Chromium and a font (the status page), gcc (the
# race detector), podman, buildah and skopeo, a registry to compare with, sshd and sudo
# (seeder push), pigz, zopfli and libdeflate (their gzip), mandoc (checks the man pages),
# systemd and rpm (the hosts that boot have it); and the programs named as arguments, each
# from the package of its name. No service of these packages is started on this machine,
# now or at the next boot. Debian's dockerd and docker are unpacked to bin/docker, and
# promtool to bin/prometheus. The containerds are not from here: see Makefile.
set -eu

missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need zstd zstd # this and Python are for a client of the protocol in another language
/usr/bin/python3 -c 'import cryptography' 2>/dev/null || missing="$missing python3-cryptography"
need runc runc
need docker-registry docker-registry # what seeder is measured against
need ip iproute2
need tc iproute2
need unshare util-linux
need nsenter util-linux
need busybox busybox-static
need nft nftables
need gcc gcc
need git git
need mkfs.ext4 e2fsprogs # file systems of their own, that fill and lose power
need pigz pigz # these three compress what store/delta gives back
need zopfli zopfli
need libdeflate-gzip libdeflate-tools
need podman podman
need buildah buildah # these two push to the registry of a host
need skopeo skopeo
need sshd openssh-server # seeder push
need sudo sudo
need kubectl kubernetes-client
need dpkg-deb dpkg
need mandoc mandoc
need chromium chromium
need rpm rpm
need apt-ftparchive apt-utils # make release: the apt repository, and its signature
need gpg gpg
need gpg-agent gpg-agent # makes the key of that signature
need ansible-playbook ansible-core # docs/rollout.md
/usr/bin/python3 -c 'import apt' 2>/dev/null || missing="$missing python3-apt" # its module for packages
need systemd-analyze systemd
need systemctl systemd
need setpriv util-linux
for program in "$@"; do need "$program" "$program"; done
[ -f /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || missing="$missing fonts-dejavu-core"
[ -f /usr/include/stdlib.h ] || missing="$missing libc6-dev"
[ -f /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"

docker="$(cd "$(dirname "$0")/.." && pwd)/bin/docker"
prometheus="${docker%/docker}/prometheus"
[ -x "$docker/usr/sbin/dockerd" ] && [ -x "$docker/usr/bin/docker" ] && [ -x "$prometheus/promtool" ] && [ -z "$missing" ] && exit 0
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
	# Packages ask policy-rc.d whether their services may be started: see invoke-rc.d(8).
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		trap 'exit 1' INT TERM
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	# shellcheck disable=SC2086 # a list of packages
	apt-get install -y -qq --no-install-recommends $missing
	for service in openssh-server:ssh docker-registry:docker-registry; do
		case "$missing " in
		*" ${service%:*} "*) systemctl --quiet disable "${service#*:}" || true ;;
		esac
	done
fi

# unpack PACKAGE DIR: the files of a package, without installing it.
unpack() {
	(cd "$2" && apt-get download -qq -o APT::Sandbox::User=root "$1")
	dpkg-deb -x "$2/$1"_*.deb "$2"
	rm -f "$2/$1"_*.deb
}

if [ ! -x "$docker/usr/sbin/dockerd" ] || [ ! -x "$docker/usr/bin/docker" ]; then
	echo "unpacking docker.io to bin/docker"
	rm -rf "$docker.part"
	mkdir -p "$docker.part"
	unpack docker.io "$docker.part"
	[ -x "$docker.part/usr/bin/docker" ] || unpack docker-cli "$docker.part" # a package of its own since Debian 13
	rm -rf "$docker"
	mv "$docker.part" "$docker"
fi
if [ ! -x "$prometheus/promtool" ]; then
	echo "unpacking promtool to bin/prometheus"
	rm -rf "$prometheus.part" "$prometheus"
	mkdir -p "$prometheus.part" "$prometheus"
	# A package of its own since Debian 13, a part of prometheus before.
	if apt-cache show promtool >/dev/null 2>&1; then
		unpack promtool "$prometheus.part"
	else
		unpack prometheus "$prometheus.part"
	fi
	mv "$prometheus.part/usr/bin/promtool" "$prometheus/"
	rm -rf "$prometheus.part"
fi
