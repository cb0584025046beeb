// Package harness runs seeder on real hosts: each has its own network, mount, pid
// and host name space, its own /etc, /run, /var/lib and cgroups, its own
// containerd, and a link that is shaped in both directions. It needs root,
// iproute2, util-linux, runc and the containerds that `make test` builds.
//
// A host is one process (the first of a pid namespace), a directory and a cgroup:
// ending the one and removing the others leaves nothing behind. All carry the
// name of their network, seeder-hosts-PID-…, by which Main looks for what is
// left of this run and of runs that were killed.
//
// It knows how hosts are made and what people do on them, and holds no expectation of
// what seeder does beyond that it starts. The packages of tests beside it do: hosts,
// attack, bench and boot. Each calls Main from its TestMain and is two directories
// below the module, from where bin/ is found.
package harness

import (
	"fmt"
	"os"
	"testing"
)

// Main runs the tests of a package that makes networks: its TestMain calls nothing else.
// It removes what killed runs have left behind, and fails where this run leaves anything.
func Main(m *testing.M) {
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
