package swarm

import (
	"testing"

	"seeder/store/chunk"
)

// twoSizes are a chunk of 1 kB and one of 1 MB.
type twoSizes struct{ *memChunks }

func (twoSizes) Bytes(n int) int64 { return []int64{1e3, 1e6}[n] }

// TestLargestOfLostChunks: a chunk that was held when the fetch began and is gone since, as
// that of a blob that was found damaged, may come although it is larger than those that were
// missing at first.
func TestLargestOfLostChunks(t *testing.T) {
	t.Parallel()
	c := twoSizes{newMemChunks(2, true)}
	c.have.Clear(0)
	todo := newTodo(c, 0, nil)
	if todo.largest != 1e3 || todo.left != 1 {
		t.Errorf("%d chunks are missing, of at most %d bytes; want the first", todo.left, todo.largest)
	}
	c.have = chunk.NewBitmap(2)
	todo.readHeld(c)
	if todo.largest != 1e6 || todo.left != 2 {
		t.Errorf("%d chunks are missing, of at most %d bytes; want both", todo.left, todo.largest)
	}
	c.have.Set(1)
	if todo.readHeld(c); todo.largest != 1e6 {
		t.Errorf("at most %d bytes, and a request for more is under way", todo.largest)
	}
}
