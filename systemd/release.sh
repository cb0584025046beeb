#!/bin/sh
# Makes a release in the directory OUT from a checkout: the packages and a static
# tarball for each of ARCHES, an SPDX list of what is linked in, SHA256SUMS, and an
# apt repository. Equal sources make equal bytes, apart from signatures. Arguments are
# for `go build`.
#
#   VERSION      the release, e.g. v0.1.0
#   OUT          directory; what an earlier run left in it is removed
#   ARCHES       e.g. "amd64 arm64"
#   SIGNING_KEY  id of a GnuPG key: signs SHA256SUMS and the apt repository. Without it
#                nothing is signed, and the script says so
set -eu

cd "$(dirname "$0")/.."
: "${VERSION:?}" "${OUT:?}" "${ARCHES:?}"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
umask 022
for program in apt-ftparchive gpg; do
	command -v "$program" >/dev/null || {
		echo "$program is missing: apt-get install apt-utils gnupg" >&2
		exit 1
	}
done

rm -rf "$OUT"
mkdir -p "$OUT/apt"
OUT=$(cd "$OUT" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

OUT="$OUT" systemd/package.sh "$@"
rm "$OUT/built-from" # the version of a release says it
version=$(basename "$OUT"/seeder_*_"${ARCHES%% *}".deb)
version=${version#seeder_}
version=${version%_*}
release=${version%-*} # without the revision of the package

for arch in $ARCHES; do
	# The tarball is laid out as a checkout, so that its systemd/install.sh works in it.
	name="seeder-$release-linux-$arch"
	tree="$stage/$name"
	mkdir -p "$tree/bin"
	cp -R systemd configs LICENSE README.md README.ko.md bin/share "$tree"
	mv "$tree/share" "$tree/bin/share"
	mkdir -p "$tree/docs"
	cp -R docs/*.md docs/images "$tree/docs"
	rm -f "$tree"/systemd/nfpm.yaml "$tree"/systemd/package.sh "$tree"/systemd/release.sh
	rm -rf "$tree/systemd/scripts"
	dpkg-deb --fsys-tarfile "$OUT/seeder_${version}_$arch.deb" | tar -x -C "$stage" ./usr/bin/seeder
	mv "$stage/usr/bin/seeder" "$tree/bin/seeder"
	tar -c -C "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
		"$name" | gzip -9n >"$OUT/$name.tar.gz"
done

# seeder push alone, for machines on which no daemon runs.
for os in darwin windows; do
	for arch in amd64 arm64; do
		name="seeder-$release-$os-$arch"
		suffix=
		[ $os = darwin ] || suffix=.exe
		mkdir -p "$stage/$name"
		cp LICENSE docs/push.md "$stage/$name"
		CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -buildvcs=false "$@" -o "$stage/$name/seeder$suffix" ./cmd/seeder
		tar -c -C "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
			"$name" | gzip -9n >"$OUT/$name.tar.gz"
	done
done

# The modules are the same for every architecture.
(cd test/tools/sbom && go build -trimpath -o ../../../bin/sbom .)
bin/sbom -program "$stage/seeder-$release-linux-${ARCHES%% *}/bin/seeder" -version "$release" -source . >"$OUT/seeder-$release.spdx.json"

# A flat repository: apt takes it by file: or from any web server.
for arch in $ARCHES; do
	ln "$OUT/seeder_${version}_$arch.deb" "$OUT/apt/"
done
(
	cd "$OUT/apt"
	apt-ftparchive packages . >Packages
	gzip -9nk Packages
	apt-ftparchive \
		-o APT::FTPArchive::Release::Origin=seeder -o APT::FTPArchive::Release::Label=seeder \
		-o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Architectures="$ARCHES" \
		release . | sed "s/^Date: .*/Date: $(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" '+%a, %d %b %Y %H:%M:%S +0000')/" >"$stage/Release"
	mv "$stage/Release" Release
)

(cd "$OUT" && find . -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >"$stage/SHA256SUMS" && mv "$stage/SHA256SUMS" SHA256SUMS)

if [ -n "${SIGNING_KEY:-}" ]; then
	sign() { gpg --batch --yes --local-user "$SIGNING_KEY" "$@"; }
	sign --armor --detach-sign --output "$OUT/SHA256SUMS.asc" "$OUT/SHA256SUMS"
	sign --clearsign --output "$OUT/apt/InRelease" "$OUT/apt/Release"
	gpg --batch --yes --armor --export --output "$OUT/seeder.asc" "$SIGNING_KEY"
	echo "release $release in $OUT, signed with $SIGNING_KEY"
else
	echo "release $release in $OUT, not signed: SIGNING_KEY is not set"
fi
