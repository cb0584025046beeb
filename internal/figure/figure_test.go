package figure

import "testing"

func TestSize(t *testing.T) {
	t.Parallel()
	const kib = 1 << 10
	for bytes, want := range map[int64]string{
		0: "0 B", 1: "1 B", 618: "618 B", 1000: "1000 B", 1023: "1023 B", kib: "1 KiB", 1536: "1.5 KiB",
		999 * kib: "999 KiB", 1000 * kib: "1000 KiB", 1008 * kib: "1008 KiB", 1023 * kib: "1023 KiB", 1024*kib - 1: "1 MiB",
		1010 << 20: "1010 MiB", 42 << 20: "42 MiB", 44_069_000: "42 MiB", 1991 << 20: "1.94 GiB", 4095 << 30: "4 TiB", 1<<63 - 1: "8 EiB",
	} {
		if got := Size(bytes); got != want {
			t.Errorf("%d bytes: %q, want %q", bytes, got, want)
		}
	}
}
