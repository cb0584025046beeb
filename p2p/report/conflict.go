package report

import "fmt"

// The kinds of conflicts between two hosts.
const (
	ConflictName     = "name"     // they have one node name
	ConflictIdentity = "identity" // they have one identity: one is a copy of the other
)

// Conflict says that two hosts that are alive cannot be told apart.
type Conflict struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`  // of the first
	Other   string `json:"other"` // the name of the second
	Address string `json:"address"`
	// OtherAddress is that of the second: it takes part in nothing until it is changed.
	OtherAddress string `json:"other_address"`
	Self         bool   `json:"self"`   // this node is one of the two
	Second       bool   `json:"second"` // this node is the second
}

// Reason says what is wrong, for people.
func (c Conflict) Reason() string {
	if c.Kind == ConflictName {
		return fmt.Sprintf("two hosts have the node name %s: %s and %s, which takes part in nothing until it has another one", c.Name, c.Address, c.OtherAddress)
	}
	return fmt.Sprintf("%s (%s) and %s (%s) have the same identity: a data_dir was copied. The second takes part in nothing until it has another one", c.Name, c.Address, c.Other, c.OtherAddress)
}

// Fix says what to do, for people.
func (c Conflict) Fix() string {
	if c.Kind == ConflictName {
		return fmt.Sprintf("on %s: set another node_name or hostname, then `systemctl restart seeder`", c.OtherAddress)
	}
	return fmt.Sprintf("on %s (%s): `systemctl stop seeder && rm /var/lib/seeder/identity && systemctl start seeder`", c.Other, c.OtherAddress)
}
