package disktest

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"path"
	"slices"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// crashed is a state and how its directory looks.
type crashed struct {
	State
	tree tree
}

// crashes lists the states, each once with what is promised in it.
func (r *recorder) crashes(power bool) []crashed {
	var out []crashed
	seen := map[[sha256.Size]byte]bool{}
	add := func(t tree, power bool, acked []string, at string) {
		sum := sha256.New()
		fmt.Fprintln(sum, power, len(acked))
		for _, name := range sorted(t.names) {
			fmt.Fprintln(sum, name, t.names[name] == isDir, len(t.files[t.names[name]]))
			sum.Write(t.files[t.names[name]])
		}
		key := [sha256.Size]byte(sum.Sum(nil))
		if !seen[key] {
			seen[key] = true
			out = append(out, crashed{State{Power: power, Acked: acked, At: at}, t})
		}
	}
	now := r.start.clone()
	var acked []string
	for k := 0; k <= len(r.ops); k++ {
		at := "the end"
		if k < len(r.ops) {
			at = fmt.Sprintf("before step %d", k)
		}
		add(now.clone(), false, slices.Clone(acked), at)
		if power {
			for _, p := range r.powerCuts(k) {
				add(p.tree, true, slices.Clone(acked), at+p.At)
			}
		}
		if k == len(r.ops) {
			break
		}
		o := r.ops[k]
		if o.kind == ack {
			acked = append(acked, o.word)
		}
		if o.kind == write { // a kill may leave the beginning of it
			for _, n := range []int{1, len(o.data) / 2, len(o.data) - 1} {
				if n > 0 && n < len(o.data) {
					part := o
					part.data = o.data[:n]
					cut := now.clone()
					cut.apply(part)
					add(cut, false, slices.Clone(acked), fmt.Sprintf("%d bytes of step %d", n, k))
				}
			}
		}
		now.apply(o)
	}
	return out
}

// powerCuts lists what may be on the disk when the power goes before step k. A
// file's content is safe once the file was synced, a name once its directory was.
// Names reach the disk in their order (file systems keep a journal of them), in
// any number; contents in any order, or in part.
func (r *recorder) powerCuts(k int) []crashed {
	ops := r.ops[:k]
	safe := map[int]int{} // by file: steps up to here are safe
	names := 0            // changes of names up to here are safe
	for i, o := range ops {
		switch o.kind {
		case syncFile:
			safe[o.file] = i
		case syncDir:
			for n, c := range ops[:i] {
				if c.isName() && (path.Dir(c.path) == o.path || (c.kind == rename && path.Dir(c.from) == o.path)) {
					names = max(names, n+1)
				}
			}
		}
	}
	var loose []int // writes that are not safe
	for i, o := range ops {
		if (o.kind == write || o.kind == truncate) && i >= safe[o.file] {
			loose = append(loose, i)
		}
	}
	var out []crashed
	for _, upto := range r.nameCuts(names, k) {
		kept := r.start.clone()
		for i, o := range ops {
			if (o.isName() && i < upto) || !o.isName() && !slices.Contains(loose, i) {
				kept.apply(o)
			}
		}
		for _, c := range contents(ops, loose, kept) {
			t := kept.clone()
			for _, o := range c.ops {
				t.apply(o)
			}
			out = append(out, crashed{State{At: fmt.Sprintf(", names up to %d, %s", upto, c.what)}, t})
		}
	}
	return out
}

func (o op) isName() bool {
	switch o.kind {
	case makeDir, create, link, remove, rename:
		return true
	}
	return false
}

// nameCuts are the steps up to which names may be on the disk.
func (r *recorder) nameCuts(safe, k int) []int {
	cuts := []int{safe}
	for i := safe; i < k; i++ {
		if r.ops[i].isName() {
			cuts = append(cuts, i+1)
		}
	}
	return cuts
}

// content is a choice of the writes that reached the disk.
type content struct {
	what string
	ops  []op
}

// contents are choices of loose writes: none, all, all but one, one alone, half of
// one, and zeros in the place of what would be the first in its part of a file.
func contents(ops []op, loose []int, kept tree) []content {
	of := func(keep func(i int) bool) (out []op) {
		for _, i := range loose {
			if keep(i) {
				out = append(out, ops[i])
			}
		}
		return out
	}
	out := []content{{"nothing that was not synced", nil}}
	if len(loose) == 0 {
		return out
	}
	all := of(func(int) bool { return true })
	zeros := slices.Clone(all)
	for i := range zeros {
		if zeros[i].at >= int64(len(kept.files[zeros[i].file])) {
			zeros[i].data = make([]byte, len(zeros[i].data))
		}
	}
	out = append(out, content{"all writes", all}, content{"zeros for writes", zeros})
	for _, one := range loose {
		if len(loose) > 1 {
			out = append(out, content{fmt.Sprintf("write %d lost", one), of(func(i int) bool { return i != one })},
				content{fmt.Sprintf("write %d alone", one), of(func(i int) bool { return i == one })})
		}
		if b := ops[one].data; len(b) > 1 {
			torn := of(func(i int) bool { return i <= one })
			torn[len(torn)-1].data = b[:len(b)/2]
			out = append(out, content{fmt.Sprintf("write %d torn", one), torn})
		}
	}
	return out
}
