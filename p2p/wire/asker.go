package wire

import "net/netip"

// askerHost is what counts as one host among those that ask for chunks: an IPv4
// address, or the /64 of an IPv6 one, of which a host may take any.
func askerHost(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}
