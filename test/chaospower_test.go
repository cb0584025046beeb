package test

// powerFaults lose what was not synced.
var powerFaults = []fault{
	{name: "power cut", spare: true, begin: func(c *chaos, h *host) func() {
		h.cutPower()
		c.wasCut[h] = true
		return func() { c.powerOn(h) }
	}},
}

func (c *chaos) powerOn(h *host) {
	h.powerOn(chaosLog)
	c.logs = append(c.logs, h.seeder.log)
}

// blackout cuts the power of all hosts at once, just when all is well.
func (c *chaos) blackout() {
	c.faults["power cut of all"]++
	c.t.Log("power cut of all hosts")
	for _, h := range c.hosts {
		h.cutPower()
		c.wasCut[h] = true
	}
	for _, h := range c.hosts {
		c.powerOn(h)
	}
	c.converge("power cut of all")
}
