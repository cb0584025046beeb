package wall

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// incarnations are the highest numbers of what was said of members.
type incarnations struct {
	outdone func(name string) // told of an instance that has renewIncarnation or more; nil: nobody

	mu     sync.Mutex
	byName map[string]uint32
}

// maxIncarnations bounds them: there are at most half as many members that are alive.
const maxIncarnations = 16384

func (in *incarnations) of(name string) (uint32, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	n, ok := in.byName[name]
	return n, ok
}

// packet notes what a packet says of members. It has passed checkPacket.
func (in *incarnations) packet(msg []byte) {
	if len(msg) > 5 && msg[0] == kindCRC {
		msg = msg[5:]
	}
	if len(msg) == 0 || msg[0] != kindCompound {
		in.message(msg)
		return
	}
	count := int(msg[1])
	lengths, parts := msg[2:2+2*count], msg[2+2*count:]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		in.message(parts[:n])
		parts = parts[n:]
	}
}

func (in *incarnations) message(msg []byte) {
	if len(msg) == 0 || msg[0] != kindAlive && msg[0] != kindSuspect && msg[0] != kindDead {
		return
	}
	if got, _, err := msgpackMap(msg[1:]); err == nil {
		in.record(got["Node"], got["Incarnation"])
	}
}

// stream notes what an exchange of states says, and returns what is in it besides, nil
// where msg is none. It has passed checkStream.
func (in *incarnations) stream(msg []byte) (user []byte) {
	if len(msg) == 0 || msg[0] != kindPushPull {
		return nil
	}
	header, b, err := msgpackMap(msg[1:])
	if err != nil {
		return nil
	}
	for range header["Nodes"].number {
		var got map[string]value
		if got, b, err = msgpackMap(b); err != nil {
			return nil
		}
		in.record(got["Name"], got["Incarnation"])
	}
	return b
}

func (in *incarnations) record(name, number value) {
	if in.outdone != nil && number.number >= renewIncarnation {
		in.outdone(string(name.bytes))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.byName == nil || len(in.byName) >= maxIncarnations {
		in.byName = map[string]uint32{}
	}
	in.byName[string(name.bytes)] = max(in.byName[string(name.bytes)], uint32(number.number))
}

// Suspect tells the memberlist behind the wall that from suspects the member called name, as
// if a packet had said so. One that is there hears of it and objects.
func (t *Transport) Suspect(name, from string) {
	incarnation, ok := t.incarnations.of(name)
	if !ok {
		return
	}
	b := []byte{kindSuspect, 0x83}
	b = binary.BigEndian.AppendUint32(append(appendString(b, "Incarnation"), 0xce), incarnation)
	b = appendString(appendString(b, "Node"), name)
	b = appendString(appendString(b, "From"), from)
	select {
	case t.packetCh <- &memberlist.Packet{Buf: b, From: t.packets.LocalAddr(), Timestamp: time.Now()}:
	case <-t.ctx.Done():
	}
}

// appendString adds a msgpack string of less than 64 KiB.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
}
