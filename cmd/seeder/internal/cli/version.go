package cli

import "runtime/debug"

// release is set by the linker in releases
// (-X seeder/cmd/seeder/internal/cli.release=1.2.3); Version is what everything else
// asks.
var release string

// Commit is the commit that was built, where the Go toolchain knows it.
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

// Version is the release, or what the Go toolchain knows of the commit.
func Version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
