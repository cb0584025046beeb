package wall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The kinds of memberlist's messages (memberlist v0.7.0, net.go).
const (
	kindPing         = 0
	kindIndirectPing = 1
	kindAck          = 2
	kindSuspect      = 3
	kindAlive        = 4
	kindDead         = 5
	kindPushPull     = 6
	kindCompound     = 7
	kindUser         = 8
	kindNack         = 11
	kindCRC          = 12
	kindError        = 13
)

const (
	// maxPacketBytes bounds a packet: members send at most 1,400 and a few bytes
	// for a checksum.
	maxPacketBytes = 2048
	// PacketBytes is what members fill packets up to before they are sealed: an Ethernet
	// frame of 1,500 bytes holds the 1,400 that come of it in any tunnel.
	PacketBytes = 1400 - sealOverhead
	// maxStreamBytes bounds a message on a stream. The states of 1,000 members are
	// some 200 KB, of as many with the longest names and metadata 740 KB.
	maxStreamBytes = 1 << 20
	// maxStates bounds the members in one exchange of states.
	maxStates = 4096
	// maxErrorBytes bounds what the other side says of an error.
	maxErrorBytes = 1024
	// versionsBytes are the six protocol versions that a member speaks.
	versionsBytes = 6
	// maxIncarnation bounds incarnations, which memberlist counts in 32 bits: the objection
	// of a member to a higher one would start at zero again, and count for nobody. Each
	// instance begins at 1 and adds 1 when it objects or tells something new of itself.
	maxIncarnation = 1 << 31
	// renewIncarnation is from when on an instance of which that is said ends, and a new one
	// takes its place: anyone who said it cannot be outdone forever.
	renewIncarnation = 1 << 24
	// maxMemberState is the last of memberlist's states (left).
	maxMemberState = 3
)

// A check says what is wrong with the value of a field.
type check func(value) error

// bodies are the fields of each message that is a map. Fields that are not named
// here are passed over; they are bounded as values.
var bodies = map[byte]map[string]check{
	kindPing: {
		"SeqNo": atMost(math.MaxUint32), "Node": nameOrNone,
		"SourceAddr": addressOrNone, "SourcePort": atMost(math.MaxUint16), "SourceNode": nameOrNone,
	},
	kindIndirectPing: {
		"SeqNo": atMost(math.MaxUint32), "Target": address, "Port": atMost(math.MaxUint16), "Node": nameOrNone, "Nack": boolean,
		"SourceAddr": addressOrNone, "SourcePort": atMost(math.MaxUint16), "SourceNode": nameOrNone,
	},
	kindAck:     {"SeqNo": atMost(math.MaxUint32), "Payload": bytesUpTo(MaxMetaBytes)},
	kindNack:    {"SeqNo": atMost(math.MaxUint32)},
	kindSuspect: {"Incarnation": atMost(maxIncarnation), "Node": name, "From": name},
	kindDead:    {"Incarnation": atMost(maxIncarnation), "Node": name, "From": name},
	kindAlive:   aliveFields,
	kindError:   {"Error": bytesUpTo(maxErrorBytes)},
}

var aliveFields = map[string]check{
	"Incarnation": atMost(maxIncarnation), "Node": name, "Addr": address, "Port": port,
	"Meta": bytesUpTo(MaxMetaBytes), "Vsn": versions,
}

// stateFields are those of a member in an exchange of states.
var stateFields = map[string]check{
	"Name": name, "Addr": address, "Port": port, "Meta": bytesUpTo(MaxMetaBytes),
	"Incarnation": atMost(maxIncarnation), "State": atMost(maxMemberState), "Vsn": versions,
}

var headerFields = map[string]check{
	"Nodes": atMost(maxStates), "UserStateLen": atMost(MaxStateBytes), "Join": boolean,
}

// required are the checks that a field that is missing does not pass.
func missing(fields map[string]check, got map[string]value) error {
	for name, ok := range fields {
		if _, there := got[name]; there {
			continue
		}
		if err := ok(value{kind: kindNil}); err != nil {
			return fmt.Errorf("field %s is missing", name)
		}
	}
	return nil
}

func atMost(limit uint64) check {
	return func(v value) error {
		if v.kind == kindNil || v.kind == kindNumber && v.number <= limit {
			return nil
		}
		return fmt.Errorf("not a number up to %d", limit)
	}
}

func port(v value) error {
	if v.kind != kindNumber || v.number == 0 || v.number > math.MaxUint16 {
		return errors.New("not a port")
	}
	return nil
}

func boolean(v value) error {
	if v.kind != kindBool && v.kind != kindNil {
		return errors.New("not true or false")
	}
	return nil
}

func name(v value) error {
	if v.kind != kindBytes || !ValidName(string(v.bytes)) {
		return errors.New("not the name of a node")
	}
	return nil
}

func nameOrNone(v value) error {
	if v.kind == kindNil || v.kind == kindBytes && len(v.bytes) == 0 {
		return nil
	}
	return name(v)
}

func address(v value) error {
	if v.kind != kindBytes || len(v.bytes) != 4 && len(v.bytes) != 16 {
		return errors.New("not an IP address")
	}
	return nil
}

func addressOrNone(v value) error {
	if v.kind == kindNil || v.kind == kindBytes && len(v.bytes) == 0 {
		return nil
	}
	return address(v)
}

func versions(v value) error {
	if v.kind != kindBytes || len(v.bytes) != versionsBytes {
		return errors.New("not six versions")
	}
	return nil
}

func bytesUpTo(limit int) check {
	return func(v value) error {
		if v.kind == kindNil || v.kind == kindBytes && len(v.bytes) <= limit {
			return nil
		}
		return fmt.Errorf("not at most %d bytes", limit)
	}
}

// checkMap reads one map that fields describe from the front of b.
func checkMap(b []byte, fields map[string]check) (got map[string]value, rest []byte, err error) {
	got, rest, err = msgpackMap(b)
	if err != nil {
		return nil, nil, err
	}
	for name, v := range got {
		ok := fields[name]
		if ok == nil {
			continue
		}
		if err := ok(v); err != nil {
			return nil, nil, fmt.Errorf("field %s is %w", name, err)
		}
	}
	return got, rest, missing(fields, got)
}

// checkPacket says whether memberlist can take msg as a packet. What it refuses
// besides: compressed and encrypted messages, which members do not send.
func checkPacket(msg []byte) error {
	if len(msg) > 5 && msg[0] == kindCRC {
		msg = msg[5:] // memberlist compares the checksum
	}
	if len(msg) > 0 && msg[0] == kindCompound {
		return checkCompound(msg[1:])
	}
	return checkMessage(msg)
}

// checkCompound looks at each part of several messages in one packet: count (1
// byte), the lengths (2 each), the parts. There is none within another.
func checkCompound(b []byte) error {
	if len(b) == 0 || len(b) < 1+2*int(b[0]) {
		return errShort
	}
	lengths, parts := b[1:1+2*int(b[0])], b[1+2*int(b[0]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(parts) {
			return errShort
		}
		if err := checkMessage(parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	if len(parts) > 0 {
		return errTrailing
	}
	return nil
}

var errTrailing = errors.New("bytes behind the end of the message")

// checkMessage looks at a single message of a packet.
func checkMessage(msg []byte) error {
	if len(msg) == 0 {
		return errors.New("an empty message")
	}
	switch kind := msg[0]; kind {
	case kindUser:
		return nil // the delegate reads it
	case kindPing, kindIndirectPing, kindAck, kindNack, kindSuspect, kindDead, kindAlive:
		return checkBody(kind, msg[1:])
	}
	return fmt.Errorf("a message of kind %d in a packet", msg[0])
}

func checkBody(kind byte, body []byte) error {
	_, rest, err := checkMap(body, bodies[kind])
	if err == nil && len(rest) > 0 {
		err = errTrailing
	}
	if err != nil {
		return fmt.Errorf("message of kind %d: %w", kind, err)
	}
	return nil
}

// checkStream says whether memberlist can take msg from a stream: a question from
// who opened it, or the answer to one.
func checkStream(msg []byte, answer bool) error {
	if len(msg) == 0 {
		return errors.New("an empty message")
	}
	switch kind := msg[0]; {
	case kind == kindPushPull:
		return checkStates(msg[1:])
	case kind == kindPing && !answer, (kind == kindAck || kind == kindError) && answer:
		return checkBody(kind, msg[1:])
	}
	return fmt.Errorf("a message of kind %d on a stream", msg[0])
}

// checkStates reads an exchange of states: a header, the states, the user state.
func checkStates(b []byte) error {
	header, b, err := checkMap(b, headerFields)
	if err != nil {
		return fmt.Errorf("header of the states: %w", err)
	}
	for i := range header["Nodes"].number {
		if _, b, err = checkMap(b, stateFields); err != nil {
			return fmt.Errorf("state %d: %w", i+1, err)
		}
	}
	if uint64(len(b)) != header["UserStateLen"].number {
		return fmt.Errorf("a user state of %d bytes where %d are announced", len(b), header["UserStateLen"].number)
	}
	return nil
}
