package disktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is one system call of the process that is followed.
type call struct {
	nr     uint64
	args   [6]uint64
	result int64
	// text and text2 are the paths, data the bytes that go with it, read when it
	// began.
	text, text2 string
	data        []byte
}

// syscallInfo is struct ptrace_syscall_info of Linux: the same on all processors.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	_      uint32
	_, _   uint64
	values [8]uint64 // entry: number and arguments; exit: result, then one byte
}

const (
	atEntry = 1
	atExit  = 2
)

// trace runs cmd to its end and shows rec its system calls, in the order in which
// they end. The error says that processes cannot be followed here.
func trace(cmd *exec.Cmd, rec *recorder) (status syscall.WaitStatus, err error) {
	runtime.LockOSThread() // ptrace belongs to a thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	defer cmd.Process.Release()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, unix.WALL, nil); err != nil || !ws.Stopped() {
		return 0, fmt.Errorf("the process does not stop: %#x, %w", ws, err)
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := errors.Join(syscall.PtraceSetOptions(pid, options), syscall.PtraceSyscall(pid, 0)); err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, &ws, unix.WALL, nil)
		return 0, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, &ws, unix.WALL, nil)
		return 0, err
	}
	defer mem.Close()
	pending := map[int]*call{}
	met := map[int]bool{pid: true}
	for {
		tid, err := syscall.Wait4(-pid, &ws, unix.WALL, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if errors.Is(err, syscall.ECHILD) {
			return status, nil
		}
		if err != nil {
			return 0, err
		}
		if !ws.Stopped() {
			if tid == pid {
				status = ws
			}
			continue
		}
		deliver := 0
		switch sig := ws.StopSignal(); {
		case sig == syscall.SIGTRAP|0x80:
			follow(tid, pending, memory{mem}, rec)
		case sig == syscall.SIGTRAP && ws.TrapCause() > 0: // a new thread
		case sig == syscall.SIGSTOP && !met[tid]: // its first breath
		default:
			deliver = int(sig)
		}
		met[tid] = true
		if err := syscall.PtraceSyscall(tid, deliver); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, err
		}
	}
}

// follow takes note of a call that begins, and hands one over that ends.
func follow(tid int, pending map[int]*call, mem memory, rec *recorder) {
	var info syscallInfo
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return
	}
	switch info.op {
	case atEntry:
		c := &call{nr: info.values[0], args: [6]uint64(info.values[1:7])}
		mem.fill(c)
		pending[tid] = c
		rec.begin(c)
	case atExit:
		c := pending[tid]
		delete(pending, tid)
		if c == nil {
			return
		}
		if c.result = int64(info.values[0]); c.result >= 0 {
			rec.call(c)
		}
	}
}

// memory is that of the process.
type memory struct{ *os.File }

// fill reads what the arguments of a call point to.
func (m memory) fill(c *call) {
	switch c.nr {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		c.text = m.text(c.args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		c.text, c.text2 = m.text(c.args[1]), m.text(c.args[3])
	case unix.SYS_TRUNCATE:
		c.text = m.text(c.args[0])
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		c.data = m.bytes(c.args[1], c.args[2])
	}
}

func (m memory) bytes(at, n uint64) []byte {
	b := make([]byte, min(n, 64<<20))
	if _, err := m.ReadAt(b, int64(at)); err != nil {
		return nil
	}
	return b
}

func (m memory) text(at uint64) string {
	var out []byte
	for len(out) < unix.PathMax {
		var b [1]byte
		if _, err := m.ReadAt(b[:], int64(at)+int64(len(out))); err != nil || b[0] == 0 {
			break
		}
		out = append(out, b[0])
	}
	return string(out)
}
