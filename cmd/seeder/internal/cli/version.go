package cli

import "runtime/debug"

// release and commit are set by the linker in what `make` builds
// (-X seeder/cmd/seeder/internal/cli.release=1.2.3); Version and Commit are what everything
// else asks.
var release, commit string

// Commit is the commit that was built, "" where that is not known.
func Commit() string {
	if commit != "" {
		return commit
	}
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
