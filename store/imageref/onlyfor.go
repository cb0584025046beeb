package imageref

import "strings"

// OnlyFor returns, of the names of all records of one target, those that ref needs and no
// other name does: the name by digest of its repository, and that by image id.
func OnlyFor(ref string, all []string) []string {
	var ids []string
	byDigest := map[string]string{} // by repository
	repos := map[string]int{}       // how many other tags each has
	tags := 0
	for _, name := range all {
		repo, tag := Repository(name)
		switch {
		case name == ref:
		case strings.HasPrefix(name, "sha256:"):
			ids = append(ids, name)
		case !tag:
			byDigest[repo] = name
		default:
			repos[repo]++
			tags++
		}
	}
	var out []string
	if repo, tag := Repository(ref); tag && repos[repo] == 0 && byDigest[repo] != "" {
		out = append(out, byDigest[repo])
		delete(byDigest, repo)
	}
	if tags == 0 && len(byDigest) == 0 {
		out = append(out, ids...)
	}
	return out
}
