#!/bin/sh
# Installs seeder from a checkout, or removes it again: install.sh install|uninstall.
#
#   DESTDIR     where it is laid instead of /: then nothing of this machine's systemd is
#               touched
#   PREFIX      /usr/local; the packages have /usr
#   SYSCONFDIR  /etc
#   PROGRAM     bin/seeder
#
# A configuration that is there stays as it is, and one that differs from the defaults
# outlives uninstall, as do the secret and /var/lib/seeder.
set -eu

cd "$(dirname "$0")/.."
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
SYSCONFDIR=${SYSCONFDIR:-/etc}
PROGRAM=${PROGRAM:-bin/seeder}
prefix="$DESTDIR$PREFIX"
config="$DESTDIR$SYSCONFDIR/seeder/seeder.yaml"

systemd() { # this machine's, where that is what is installed to
	[ -z "$DESTDIR" ] && [ -d /run/systemd/system ] || return 0
	systemctl "$@"
}

lay() { # mode, file, place
	install -d -m 0755 "$(dirname "$3")"
	install -m "$1" "$2" "$3"
}

do_install() {
	lay 0755 "$PROGRAM" "$prefix/bin/seeder"
	lay 0644 systemd/seeder.service "$prefix/lib/systemd/system/seeder.service"
	sed -i "s|/usr/local/bin/seeder|$PREFIX/bin/seeder|" "$prefix/lib/systemd/system/seeder.service"
	lay 0644 systemd/90-seeder.preset "$prefix/lib/systemd/system-preset/90-seeder.preset"
	[ -e "$config" ] || lay 0644 configs/seeder.yaml "$config"
	for f in configs/*; do
		lay 0644 "$f" "$prefix/share/seeder/$(basename "$f")"
	done
	lay 0644 LICENSE "$prefix/share/doc/seeder/copyright"
	for f in README*.md docs/*.md; do
		lay 0644 "$f" "$prefix/share/doc/seeder/$(basename "$f")"
	done
	for f in docs/images/*; do
		lay 0644 "$f" "$prefix/share/doc/seeder/images/$(basename "$f")"
	done
	lay 0644 bin/share/bash-completion/completions/seeder "$prefix/share/bash-completion/completions/seeder"
	lay 0644 bin/share/zsh/site-functions/_seeder "$prefix/share/zsh/site-functions/_seeder"
	lay 0644 bin/share/fish/vendor_completions.d/seeder.fish "$prefix/share/fish/vendor_completions.d/seeder.fish"
	rm -f "$prefix"/share/man/man[15]/seeder*.gz # a command that is gone has no page
	for f in bin/share/man/man[15]/*; do
		page="$prefix/share/man/$(basename "$(dirname "$f")")/$(basename "$f")"
		lay 0644 "$f" "$page"
		gzip -9nf "$page"
	done
	systemd daemon-reload
}

do_uninstall() {
	[ ! -e "$prefix/lib/systemd/system/seeder.service" ] || systemd disable --now seeder.service
	if [ -e "$config" ] && [ -e "$prefix/share/seeder/seeder.yaml" ]; then
		if cmp -s "$config" "$prefix/share/seeder/seeder.yaml"; then
			rm "$config"
		else
			echo "$config has been edited and stays"
		fi
	fi
	rm -f "$prefix/bin/seeder" "$prefix/lib/systemd/system/seeder.service" "$prefix/lib/systemd/system-preset/90-seeder.preset" \
		"$prefix"/share/man/man[15]/seeder*.gz \
		"$prefix/share/bash-completion/completions/seeder" "$prefix/share/zsh/site-functions/_seeder" \
		"$prefix/share/fish/vendor_completions.d/seeder.fish"
	rm -rf "$prefix/share/seeder" "$prefix/share/doc/seeder"
	for d in bin lib/systemd/system lib/systemd/system-preset lib/systemd lib share/man/man1 share/man/man5 share/man share/bash-completion/completions share/bash-completion \
		share/zsh/site-functions share/zsh share/fish/vendor_completions.d share/fish share/doc share ""; do
		[ -z "$DESTDIR" ] || rmdir "$prefix/$d" 2>/dev/null || true # what else is there stays
	done
	rmdir "$DESTDIR$SYSCONFDIR/seeder" 2>/dev/null || true
	systemd daemon-reload
}

case "${1:-}" in
install) do_install ;;
uninstall) do_uninstall ;;
*)
	echo "usage: install.sh install|uninstall" >&2
	exit 2
	;;
esac
