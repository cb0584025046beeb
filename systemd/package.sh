#!/bin/sh
# Makes the .deb and .rpm for each of ARCHES, and no others, in the directory OUT, of a checkout that
# has bin/share (make man) and bin/nfpm. Equal sources make equal bytes: the times in
# the packages are SOURCE_DATE_EPOCH, the commit's unless it is set, and the version is
# VERSION alone. OUT/built-from says what they are made of. Arguments are for `go build`.
set -eu

cd "$(dirname "$0")/.."
: "${VERSION:?}" "${OUT:?}" "${ARCHES:?}"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
umask 022

# A release v1.2.3 is 1.2.3, the fourth commit after it 1.2.3+4.gabcdef, and where
# there is no release yet a version is 0~ with the time and the commit, so that each
# is newer than those before it.
version=$(printf %s "${VERSION#v}" | sed -E 's/^([0-9]+\.[0-9.]*)-([0-9]+)-(g[0-9a-f]+)/\1+\2.\3/; s/-/./g')
case "$version" in
[0-9]*.[0-9]*) ;;
*) version="0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version" ;;
esac
export PACKAGE_VERSION="$version"

mkdir -p "$OUT"
rm -f "$OUT"/seeder_*.deb "$OUT"/seeder-*.rpm "$OUT/built-from" # of earlier versions
COMMIT=$(git rev-parse HEAD 2>/dev/null || true)
STAGE=$(mktemp -d)
export STAGE
trap 'rm -rf "$STAGE"' EXIT
for PACKAGE_ARCH in $ARCHES; do
	export PACKAGE_ARCH
	rm -rf "${STAGE:?}"/*
	CGO_ENABLED=0 GOOS=linux GOARCH="$PACKAGE_ARCH" go build -buildvcs=false "$@" -o "$STAGE/seeder" ./cmd/seeder
	DESTDIR="$STAGE" PREFIX=/usr PROGRAM="$STAGE/seeder" systemd/install.sh install
	for kind in deb rpm; do
		bin/nfpm package --config systemd/nfpm.yaml --packager "$kind" --target "$OUT/"
	done
done
printf '%s %s %s\n' "$VERSION" "$SOURCE_DATE_EPOCH" "$COMMIT" >"$OUT/built-from"
