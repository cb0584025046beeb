//go:build linux

package control

import "seeder/cmd/seeder/internal/config"

// Reloaded is what a reload came to, by key.
type Reloaded struct {
	Applied []config.Setting `json:"applied"`
	Restart []config.Setting `json:"restart"` // applied by a restart only
}

// Pending is what differs between the configuration in use and that which is there
// now. Nothing of a secret is in it.
type Pending struct {
	Config  config.Config    `json:"config"`  // in use
	Reload  []config.Setting `json:"reload"`  // a reload brings it into force
	Restart []config.Setting `json:"restart"` // a restart does
	Secret  string           `json:"secret"`  // where other secrets than those in use are; empty: they are the same
	Held    string           `json:"held"`    // where those in use came from
	Error   string           `json:"error"`   // why a reload would fail
}
