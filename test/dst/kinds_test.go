package dst

// The groups of kinds.
const (
	network   = "network"
	disks     = "disk"
	stores    = "store"
	crashes   = "crashes"
	members   = "hostile members"
	operators = "operators"
)

// kind is something that can happen. begin makes it happen to a machine and reports
// whether it could; end, where it is not nil, ends it when its time is over.
type kind struct {
	name, group string
	weight      int
	begin       func(c *cluster, m *machine, e Event) (end func(), ok bool)
	counted     bool // by itself, once it really happens
}

// kinds are all, by group.
var kinds = concat(networkKinds, diskKinds, storeKinds, crashKinds, memberKinds, nameKinds, operatorKinds)

func concat(groups ...[]kind) (out []kind) {
	for _, g := range groups {
		out = append(out, g...)
	}
	return out
}

func kindOf(name string) *kind {
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i]
		}
	}
	return nil
}

// forSome makes a fault of the store: set begins it, reset ends it.
func forSome(set, reset func(*faultyStore)) func(c *cluster, m *machine, e Event) (func(), bool) {
	return func(_ *cluster, m *machine, _ Event) (func(), bool) {
		if !m.up {
			return nil, false
		}
		s := m.store
		s.set(set)
		return func() { s.set(reset) }, true
	}
}
