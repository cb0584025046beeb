package wire

import "testing"

func TestAskerHost(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"10.0.0.1:1234": "10.0.0.1", "[::ffff:10.0.0.1]:1234": "10.0.0.1", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:5": "fe80::/64", "pipe": "pipe",
	} {
		if got := askerHost(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}
