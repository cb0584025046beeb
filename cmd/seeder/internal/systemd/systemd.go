// Package systemd is what the daemon tells systemd: that it is ready, how it does, that
// it works, and that it ends.
//
// It owns the notifications and the health check behind them. It never decides what healthy
// means for the cluster: only whether this process has to be started again.
//
// Invariant: systemd hears that the daemon works only after the daemon has answered its own
// control socket and its loops have made turns. Without systemd nothing is sent.
package systemd
