package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"seeder/p2p/trust"
)

// minRate is the lowest limit of transfers, in bytes per second. Below it a chunk of
// 4 MiB takes more than a minute, and a unit was forgotten.
const minRate = 64 << 10

// ParseRate reads a limit in bytes per second; 0 is none.
func ParseRate(s string) (int64, error) {
	n, err := parseBytes(s)
	if err != nil {
		return 0, err
	}
	if n > 0 && n < minRate {
		return 0, fmt.Errorf("invalid limit of %d bytes per second: the lowest is 64KiB; write e.g. 50MiB, or 0 for no limit", n)
	}
	return n, nil
}

// Free is what is to stay free of a disk: the larger of both.
type Free struct {
	Share float64 // of the disk, from 0 to 1
	Bytes int64
}

// ParseMinFree reads a share of a disk or a size.
func ParseMinFree(s string) (Free, error) {
	if percent, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(f >= 0 && f < 100) {
			return Free{}, errors.New("want a share from 0% to 99%, or a size, e.g. 5GiB")
		}
		return Free{Share: f / 100}, nil
	}
	n, err := parseBytes(s)
	if err != nil {
		return Free{}, errors.New("want a share, e.g. 10%, or a size with its unit, e.g. 5GiB")
	}
	return Free{Bytes: n}, nil
}

// parseBytes reads a size as people write it: 50MiB is 50·2²⁰, 50MB is 50·10⁶. Other
// than 0 it has a unit: 50 alone is more often 50 MB than 50 bytes.
func parseBytes(s string) (int64, error) {
	parse := units.FromHumanSize
	if strings.Contains(strings.ToLower(s), "ib") {
		parse = units.RAMInBytes
	}
	n, err := parse(s)
	if err != nil || n < 0 || n == math.MaxInt64 {
		return 0, errors.New("want a size with its unit, e.g. 50MiB or 50MB; 0: no limit")
	}
	if n > 0 && strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' && r != ' ' }) < 0 {
		return 0, fmt.Errorf("a size without a unit: write e.g. %sMiB", strings.TrimSpace(s))
	}
	return n, nil
}

// ParseAnnouncers are the ids of `announcers`, and those that are excluded there by a "!".
func (c Config) ParseAnnouncers() (listed, excluded []trust.NodeID, err error) {
	for _, s := range c.Announcers {
		id, not := strings.CutPrefix(s, "!")
		parsed, err := trust.ParseNodeID(id)
		if err != nil {
			return nil, nil, fmt.Errorf("announcers: %w", err)
		}
		if not {
			excluded = append(excluded, parsed)
		} else {
			listed = append(listed, parsed)
		}
	}
	return listed, excluded, nil
}
