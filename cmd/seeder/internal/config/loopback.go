package config

import "net/netip"

// IsLoopback says whether an address, with or without a port, is one of this host
// alone.
func IsLoopback(address string) bool {
	addr, err := AdvertisedAddr(address)
	if err != nil {
		addr = netip.Addr{}
	}
	return addr.IsLoopback()
}

// AdvertisedAddr is the ip of "ip" or "ip:port".
func AdvertisedAddr(value string) (netip.Addr, error) {
	if ap, err := netip.ParseAddrPort(value); err == nil {
		return ap.Addr(), nil
	}
	return netip.ParseAddr(value)
}
