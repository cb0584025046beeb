package gossip

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// A member's incarnation numbers what is said of it: news with a lower number than
// the one that is known change nothing. memberlist begins at 1 with each start, so
// that a farewell that was recorded before a restart, and is sent again after it, would
// be news: the member would have left, until it hears of that and objects. With the
// seconds since epoch as the first number, what was said before a restart is always
// older. A clock that goes back costs no more than beginning at 1.

// epoch is before any start of seeder.
var epoch = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// maxFirst leaves as many numbers above the first one as there are below, whatever the
// clock says.
const maxFirst = math.MaxUint32 / 2

func firstIncarnation(now time.Time) uint32 {
	return uint32(min(max(int64(now.Sub(epoch)/time.Second), 0), maxFirst))
}

// begin has memberlist count from first on: it is told that somebody with the number
// before suspects this node, and objects. It returns when that is done.
func (t *transport) begin(self *memberlist.Node, vsn []uint8, first uint32) {
	if first == 0 {
		return
	}
	done := make(chan struct{})
	s := &stream{Conn: &nobody{self}, in: bytes.NewReader(suspected(self, vsn, first-1)), closed: func() { close(done) }}
	select {
	case t.streamCh <- s:
		<-done
	case <-t.ctx.Done():
	}
}

// suspected is an exchange of states in which self is suspected, as memberlist
// encodes it.
func suspected(self *memberlist.Node, vsn []uint8, incarnation uint32) []byte {
	b := []byte{kindPushPull, 0x83}
	b = append(appendString(b, "Nodes"), 1)
	b = append(appendString(b, "UserStateLen"), 0)
	b = append(appendString(b, "Join"), 0xc2)
	b = append(b, 0x87)
	b = appendString(appendString(b, "Name"), self.Name)
	b = appendString(appendString(b, "Addr"), string(self.Addr))
	b = binary.BigEndian.AppendUint16(append(appendString(b, "Port"), 0xcd), self.Port)
	b = appendString(appendString(b, "Meta"), "")
	b = binary.BigEndian.AppendUint32(append(appendString(b, "Incarnation"), 0xce), incarnation)
	b = append(appendString(b, "State"), byte(memberlist.StateSuspect))
	return appendString(appendString(b, "Vsn"), string(vsn))
}

// appendString adds a msgpack string of less than 64 KiB.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
}

// nobody is the other end of a stream that nobody opened: what it is told is lost.
type nobody struct{ node *memberlist.Node }

var _ net.Conn = (*nobody)(nil)

func (n *nobody) Read([]byte) (int, error)         { return 0, io.EOF }
func (n *nobody) Write(p []byte) (int, error)      { return len(p), nil }
func (n *nobody) Close() error                     { return nil }
func (n *nobody) LocalAddr() net.Addr              { return n.RemoteAddr() }
func (n *nobody) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: n.node.Addr, Port: int(n.node.Port)} }
func (n *nobody) SetDeadline(time.Time) error      { return nil }
func (n *nobody) SetReadDeadline(time.Time) error  { return nil }
func (n *nobody) SetWriteDeadline(time.Time) error { return nil }
