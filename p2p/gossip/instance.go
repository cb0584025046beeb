package gossip

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"seeder/p2p/gossip/wall"
)

// instance is a node at one address since one start: what memberlist takes for a member,
// and what it is called there. memberlist ties a name to one address for as long as
// somebody believes that it is alive, so that two hosts of one name would hide each other
// and a host whose address changes would be gone for all. With a name for each instance
// both are seen by everybody, and this package tells them apart.
type instance struct {
	node    string // the node's name
	process string // 16 hexadecimal digits: 8 of the second it started in, since 1970, and 8 by chance
	moved   int    // how many instances the process had before
}

// suffixBytes bounds what an instance adds to a node's name.
const suffixBytes = 1 + 16 + 1 + 8

var instanceSuffix = regexp.MustCompile(`^[0-9a-f]{16}\.[0-9]{1,8}$`)

func newInstance(node string) instance {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	binary.BigEndian.PutUint32(b[:], uint32(time.Now().Unix()))
	return instance{node: node, process: hex.EncodeToString(b[:])}
}

// startedAfter reports whether the process of i is a later one than that of o, both of one
// host: by its clock, so that of two within a second, or after a clock was set back, neither
// need be.
func (i instance) startedAfter(o instance) bool {
	const second = 8
	return len(o.process) > second && i.process[:second] > o.process[:second]
}

// next is the same process at another address.
func (i instance) next() instance {
	i.moved++
	return i
}

// String is the name of the instance for memberlist.
func (i instance) String() string { return fmt.Sprintf("%s/%s.%d", i.node, i.process, i.moved) }

func parseInstance(s string) (instance, error) {
	at := strings.LastIndexByte(s, '/')
	if at < 1 || !wall.ValidName(s[:at]) || !instanceSuffix.MatchString(s[at+1:]) {
		return instance{}, fmt.Errorf("invalid instance name %q: want NAME/PROCESS.MOVES", s)
	}
	process, count, _ := strings.Cut(s[at+1:], ".")
	moved, err := strconv.Atoi(count)
	if err != nil {
		return instance{}, fmt.Errorf("invalid instance name %q: %w", s, err)
	}
	return instance{node: s[:at], process: process, moved: moved}, nil
}
