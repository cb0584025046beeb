package dst

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"seeder/p2p/wire"
)

// The kinds that are about who is who, and what time it is.
var nameKinds = []kind{
	{name: "two hosts of one name", group: members, weight: 2, begin: func(c *cluster, m *machine, _ Event) (func(), bool) {
		return c.twin(m.name, nil)
	}},
	{name: "a cloned identity", group: members, weight: 2, begin: func(c *cluster, m *machine, _ Event) (func(), bool) {
		return c.twin(fmt.Sprintf("clone%d", c.twins), func(t *machine) error {
			return copyFile(filepath.Join(m.dir, "identity"), filepath.Join(t.dir, "identity"), 0o600)
		})
	}},
	{name: "made-up members", group: members, weight: 2, begin: hostile(tricks{ghosts: true})},
	{name: "a clock that is off", group: members, weight: 4, begin: func(_ *cluster, m *machine, e Event) (func(), bool) {
		m.setSkew(time.Duration(int64(e.Arg%uint64(2*maxSkew/time.Second))-int64(maxSkew/time.Second)) * time.Second)
		return func() { m.setSkew(0) }, true
	}},
}

const (
	// maxSkew is by how much a clock is off at most: two of them are less than what
	// clockJumps jumps beyond the life of a withdrawal.
	maxSkew = 10 * time.Hour
	// ghostBound is how long members that somebody made up may be shown (p2p/gossip).
	ghostBound = 8 * time.Minute
)

// now is what the clock of m says.
func (m *machine) now() time.Time {
	m.skewMu.Lock()
	defer m.skewMu.Unlock()
	return time.Now().Add(m.skew)
}

func (m *machine) setSkew(d time.Duration) {
	m.skewMu.Lock()
	defer m.skewMu.Unlock()
	m.skew = d
}

// twin starts one more host, with a store of its own, until the fault ends: somebody gave
// it the name of another one, or copied its disk.
func (c *cluster) twin(name string, prepare func(*machine) error) (end func(), ok bool) {
	c.twins++
	c.zombieMachines++ // holds files, too
	t := c.newMachine(name, -1, fmt.Sprintf("10.2.%d.%d", c.twins/250, 1+c.twins%250))
	var err error
	if t.dir, err = t.newDiskAt(fmt.Sprintf("twin%d", c.twins)); err == nil && prepare != nil {
		err = prepare(t)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, false // a host that has never run has no identity
	}
	if err == nil {
		err = t.start()
	}
	if err != nil {
		c.violation("harness: %s: %v", name, err)
		return nil, false
	}
	return func() {
		if err := t.leave(); err != nil {
			c.violation("%v", err)
		}
		t.dropDisk(t.dir)
	}, true
}

// ghosts is an exchange of memberlist's states, framed as on a stream, in which members are
// alive that do not exist.
func ghosts(from, n int) []byte {
	str := func(b []byte, s string) []byte {
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := []byte{6, 0x83} // a push/pull; a map of three
	b = binary.BigEndian.AppendUint16(append(str(b, "Nodes"), 0xcd), uint16(n))
	b = append(str(b, "UserStateLen"), 0)
	b = append(str(b, "Join"), 0xc2)
	for i := from; i < from+n; i++ {
		meta := fmt.Sprintf(`{"id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaa%04s","t":"10.9.%d.%d:7951","p":1,"v":"x"}`, base32of(i), i>>8&255, i&255)
		b = append(b, 0x87)
		b = str(str(b, "Name"), fmt.Sprintf("a%d/%016x.0", i, i))
		b = str(str(b, "Addr"), string([]byte{10, 9, byte(i >> 8), byte(i)}))
		b = append(str(b, "Port"), 0xcd, 0x1f, 0x0e)
		b = str(str(b, "Meta"), meta)
		b = append(str(b, "Incarnation"), 1)
		b = append(str(b, "State"), 0)
		b = str(str(b, "Vsn"), "\x01\x05\x02\x00\x00\x00")
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// base32of is i in four characters of an id.
func base32of(i int) string {
	const digits = "abcdefghijklmnopqrstuvwxyz234567"
	return string([]byte{digits[i>>15&31], digits[i>>10&31], digits[i>>5&31], digits[i&31]})
}

// makeUp tells a host of members that do not exist.
func (v *villain) makeUp(ctx context.Context, client *wire.Client, victim string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, _, err := client.DialGossip(ctx, victim)
	if err != nil {
		return // it is down, or cut off
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(ghosts(int(v.uint64()%60000), 40)); err != nil {
		return
	}
	_, _ = conn.Read(make([]byte, 1<<16)) // its answer, as far as that goes
}
