//go:build !linux

package control

// process is who listens on the socket: no daemon runs here.
func (c *Client) process() (pid int32, state string) { return 0, "" }
