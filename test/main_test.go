// Package test runs seeder on real hosts: each has its own network, mount, pid
// and host name space, its own /etc, /run, /var/lib and cgroups, its own
// containerd, and a link that is shaped in both directions. It needs root,
// iproute2, util-linux, runc and the containerds that `make test` builds.
//
// A host is one process (the first of a pid namespace), a directory and a cgroup:
// ending the one and removing the others leaves nothing behind. All carry the
// name of their network, seeder-hosts-PID-…, by which TestMain looks for what is
// left of this run and of runs that were killed.
package test

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	for _, name := range deadNetworks() {
		fmt.Println("removing what a killed run left behind:", name)
		if err := remove(name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if left := traces(networkPrefix()); len(left) > 0 {
		fmt.Printf("FAIL: left behind: %q\n", left)
		code = 1
	}
	os.Exit(code)
}
