package hosts

import (
	"seeder/test/harness"
)

// powerFaults lose what was not synced.
var powerFaults = []fault{
	{name: "power cut", spare: true, begin: func(c *chaos, h *harness.Host) func() {
		cutPower(h)
		c.wasCut[h] = true
		return func() { c.powerOn(h) }
	}},
}

func (c *chaos) powerOn(h *harness.Host) {
	powerOn(h, chaosLog)
	c.logs = append(c.logs, h.Seeder.Log)
}

// blackout cuts the power of all hosts at once, just when all is well.
func (c *chaos) blackout() {
	c.faults["power cut of all"]++
	c.t.Log("power cut of all hosts")
	for _, h := range c.hosts {
		cutPower(h)
		c.wasCut[h] = true
	}
	for _, h := range c.hosts {
		c.powerOn(h)
	}
	c.converge("power cut of all")
}
