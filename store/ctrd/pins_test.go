package ctrd

import "testing"

func TestHeedsPins(t *testing.T) {
	for version, want := range map[string]bool{
		"1.6.20~ds1": false, "1.6.24": false, "v1.6.25": true, "v1.7.2-k3s1": false, "v1.7.3-k3s1": true, "1.7.35": true,
		"v2.0.4-k3s2": true, "2.4.2": true, "": true, "in-process": true, "1.5.9": false, "1.8.0": true,
	} {
		if got := heedsPins(version); got != want {
			t.Errorf("%q: %v, want %v", version, got, want)
		}
	}
}
