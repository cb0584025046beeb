package wall

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The bodies of memberlist's messages are msgpack maps from the names of fields to
// numbers, strings and bytes, one level deep. This reader takes nothing else, so
// that memberlist's decoder never sees a length that lies or a nested value.

// value is one field as it is on the wire.
type value struct {
	bytes  []byte // of a string or of bytes; nil for others
	number uint64 // of an integer that is not negative, of a boolean 0 or 1
	kind   kind
}

type kind byte

const (
	kindNil kind = iota
	kindBool
	kindNumber
	kindBytes
)

const (
	// maxFields and maxFieldName bound a map: memberlist's largest has 8 fields, the
	// longest name has 12 bytes.
	maxFields    = 16
	maxFieldName = 32
)

var errShort = errors.New("the message ends within a value")

// msgpackMap reads one map from the front of b and returns what is behind it. Each
// field may be there once.
func msgpackMap(b []byte) (fields map[string]value, rest []byte, err error) {
	n, b, err := mapLen(b)
	if err != nil {
		return nil, nil, err
	}
	fields = make(map[string]value, n)
	for range n {
		var k, v value
		if k, b, err = msgpackValue(b); err != nil {
			return nil, nil, err
		}
		if k.kind != kindBytes || len(k.bytes) == 0 || len(k.bytes) > maxFieldName {
			return nil, nil, errors.New("a field without a name")
		}
		name := string(k.bytes)
		if _, twice := fields[name]; twice {
			return nil, nil, fmt.Errorf("field %q is there twice", name)
		}
		if v, b, err = msgpackValue(b); err != nil {
			return nil, nil, err
		}
		fields[name] = v
	}
	return fields, b, nil
}

func mapLen(b []byte) (n int, rest []byte, err error) {
	switch {
	case len(b) >= 1 && b[0]&0xf0 == 0x80: // fixmap
		n, rest = int(b[0]&0x0f), b[1:]
	case len(b) >= 3 && b[0] == 0xde: // map 16
		n, rest = int(binary.BigEndian.Uint16(b[1:])), b[3:]
	default:
		return 0, nil, errors.New("the body of the message is not a map")
	}
	if n > maxFields {
		return 0, nil, fmt.Errorf("a map of %d fields, at most %d", n, maxFields)
	}
	return n, rest, nil
}

// msgpackValue reads a value that is not a container.
func msgpackValue(b []byte) (value, []byte, error) {
	if len(b) == 0 {
		return value{}, nil, errShort
	}
	switch c := b[0]; {
	case c <= 0x7f: // positive fixint
		return value{kind: kindNumber, number: uint64(c)}, b[1:], nil
	case c&0xe0 == 0xa0: // fixstr
		return take(b[1:], int(c&0x1f))
	case c == 0xc0:
		return value{kind: kindNil}, b[1:], nil
	case c == 0xc2, c == 0xc3:
		return value{kind: kindBool, number: uint64(c & 1)}, b[1:], nil
	case c == 0xc4, c == 0xd9: // bin 8, str 8
		return sized(b, 1)
	case c == 0xc5, c == 0xda: // bin 16, str 16
		return sized(b, 2)
	case c >= 0xcc && c <= 0xcf: // uint 8 to 64
		return number(b, 1<<(c-0xcc))
	case c >= 0xd0 && c <= 0xd3: // int 8 to 64
		return signed(b, 1<<(c-0xd0))
	}
	return value{}, nil, fmt.Errorf("a value of the kind %#02x", b[0])
}

// sized reads bytes with their length of so many bytes in front.
func sized(b []byte, width int) (value, []byte, error) {
	v, rest, err := number(b, width)
	if err != nil {
		return value{}, nil, err
	}
	return take(rest, int(v.number))
}

func take(b []byte, n int) (value, []byte, error) {
	if n > len(b) {
		return value{}, nil, errShort
	}
	return value{kind: kindBytes, bytes: b[:n:n]}, b[n:], nil
}

// number reads a big-endian integer of width bytes behind the kind.
func number(b []byte, width int) (value, []byte, error) {
	if len(b) < 1+width {
		return value{}, nil, errShort
	}
	var n uint64
	for _, c := range b[1 : 1+width] {
		n = n<<8 | uint64(c)
	}
	return value{kind: kindNumber, number: n}, b[1+width:], nil
}

// signed is number for the signed kinds: none of memberlist's fields is negative.
func signed(b []byte, width int) (value, []byte, error) {
	v, rest, err := number(b, width)
	if err == nil && v.number>>(8*width-1) == 1 {
		return value{}, nil, errors.New("a negative number")
	}
	return v, rest, err
}
