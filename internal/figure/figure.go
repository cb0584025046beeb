// Package figure writes figures for people, in one way wherever they are shown: sizes
// on terminals, on the status page, in reasons, events and logs.
//
// It never reads figures; anyone who takes sizes from users checks them elsewhere.
package figure

import (
	"fmt"
	"strconv"
)

var units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Size is a number of bytes with three digits and a unit of the powers of 1,024, as
// "1.5 GiB": four digits from 1000 to 1023 of a unit, and no zeros behind the point.
func Size(bytes int64) string {
	v, i := float64(bytes), 0
	for v >= 1023.5 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v >= 999.5 || i == 0 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return strconv.FormatFloat(round(v), 'f', -1, 64) + " " + units[i]
}

// round keeps three digits.
func round(v float64) float64 {
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64)
	return v
}
