// Package delta measures what travels instead of a rebuilt layer, and what making it and
// taking it costs: `make bench-delta`. The pairs are made of what this machine and its package
// registries have; what cannot be had is named in the table.
package delta

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"seeder/store/delta"
)

// A process of its own makes or takes a delta, so that its CPU and memory are known.
const childArgs = "SEEDER_BENCH_DELTA_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childArgs) != "" {
		err := child(os.Args[1:])
		if err == nil {
			err = printPeak()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// printPeak prints the most memory that this process had. What rusage says begins with that of
// the process that started it.
func printPeak() error {
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(p), "VmHWM:")
	line, _, _ := strings.Cut(rest, " kB")
	fmt.Println(strings.TrimSpace(line))
	return nil
}

// child: encode kind base digest target digest delta, or decode - base digest delta.
func child(args []string) error {
	kind, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	base, err := open(args[2], args[3])
	if err != nil {
		return err
	}
	if args[0] == "decode" {
		f, err := os.Open(args[4])
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = delta.Decode(context.Background(), io.Discard, bufio.NewReaderSize(f, 1<<20), base)
		return err
	}
	target, err := open(args[4], args[5])
	if err != nil {
		return err
	}
	f, err := os.Create(args[6])
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = delta.Encode(context.Background(), f, delta.Kind(kind), base, target, 0)
	return err
}

func open(path, sum string) (delta.Blob, error) {
	f, err := os.Open(path)
	if err != nil {
		return delta.Blob{}, err
	}
	s, err := f.Stat()
	if err != nil {
		return delta.Blob{}, err
	}
	return delta.Blob{ReaderAt: f, Digest: digest.Digest(sum), Bytes: s.Size()}, nil
}

// cost is what a process took.
type cost struct {
	cpu time.Duration
	rss int64 // bytes, peak, of the whole process
}

// mbs is MB of bytes for a second of CPU.
func (c cost) mbs(bytes int64) float64 { return float64(bytes) / 1e6 / max(c.cpu.Seconds(), 0.001) }

func run(t *testing.T, args ...string) (cost, error) {
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(os.Environ(), childArgs+"=1", "GOMAXPROCS=1")
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return cost{}, fmt.Errorf("%s: %w: %s", args[0], err, stderr.String())
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return cost{}, fmt.Errorf("the peak memory of %s: %w", args[0], err)
	}
	s := c.ProcessState
	return cost{cpu: s.UserTime() + s.SystemTime(), rss: kib << 10}, nil
}

func sum(t *testing.T, path string) digest.Digest {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := digest.FromReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// measured is a row of the table.
type measured struct {
	delta          int64
	encode, decode cost
}

// measure makes the delta of two files, and takes it.
func measure(t *testing.T, kind delta.Kind, base, target string, baseSum, targetSum digest.Digest) (measured, error) {
	out := filepath.Join(t.TempDir(), "delta")
	k := strconv.Itoa(int(kind))
	encode, err := run(t, "encode", k, base, string(baseSum), target, string(targetSum), out)
	if err != nil {
		return measured{}, err
	}
	decode, err := run(t, "decode", k, base, string(baseSum), out)
	if err != nil {
		return measured{}, err
	}
	s, err := os.Stat(out)
	if err != nil {
		return measured{}, err
	}
	return measured{s.Size(), encode, decode}, nil
}
