# Calls that no job may make, with arguments that do nothing where they get through. Prints "call: ERRNO".
import ctypes, errno, os, struct

libc = ctypes.CDLL(None, use_errno=True)
NONSENSE = -1


def call(name, number, *arguments):
    # In a child, because some of them would change the caller.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.set_errno(0)
        got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
        answer = errno.errorcode.get(ctypes.get_errno(), "?") if got == -1 else "got through"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    answer = os.read(reader, 100).decode()
    os.close(reader)
    print(f"{name}: {answer or f'killed by {os.WTERMSIG(status)}'}", flush=True)


for flag, name in (
    (0x20000, "mount"), (0x2000000, "cgroup"), (0x4000000, "uts"), (0x8000000, "ipc"),
    (0x10000000, "user"), (0x20000000, "pid"), (0x40000000, "net"), (0x80, "time"),
):
    call(f"unshare {name} namespace", 272, flag)
    if name != "time":
        call(f"clone into a new {name} namespace", 56, flag | 17, 0, 0, 0, 0)
call("clone3", 435, None, 0)
call("setns", 308, NONSENSE, 0)
call("mount", 165, b"none", b"/tmp", b"no such file system", 0, None)
call("umount2", 166, b"/nowhere", 0)
call("pivot_root", 155, b"/nowhere", b"/nowhere")
call("chroot", 161, b"/nowhere")
call("fsopen", 430, b"no such file system", 0)
call("fsmount", 432, NONSENSE, 0, 0)
call("move_mount", 429, NONSENSE, b"", NONSENSE, b"", 0)
call("open_tree", 428, NONSENSE, b"nowhere", 0)
call("mount_setattr", 442, NONSENSE, b"nowhere", 0, None, 0)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, b"no such type", b"x", None, 0, -3)
call("request_key", 249, b"no such type", b"x", None, 0)
call("bpf", 321, 9999, None, 0)
call("perf_event_open", 298, None, 0, -1, -1, 0)
call("userfaultfd", 323, 0xffff)
call("io_uring_setup", 425, 0, None)
call("io_uring_enter", 426, NONSENSE, 0, 0, 0, None, 0)
call("io_uring_register", 427, NONSENSE, 0, None, 0)
call("open_by_handle_at", 304, NONSENSE, None, 0)
call("name_to_handle_at", 303, NONSENSE, b"nowhere", None, None, 0)
call("init_module", 175, None, 0, None)
call("finit_module", 313, NONSENSE, None, 0)
call("delete_module", 176, b"no such module", 0)
call("kexec_load", 246, 0, 0, None, 0xffff)
call("reboot", 169, 0, 0, 0, None)
call("swapon", 167, b"/nowhere", 0)
call("swapoff", 168, b"/nowhere")
call("settimeofday", 164, None, None)
call("clock_settime", 227, 0, None)
call("adjtimex", 159, None)
call("sethostname", 170, None, -1)
call("setdomainname", 171, None, -1)
call("acct", 163, b"/nowhere")
call("quotactl", 179, 0, None, 0, None)
call("iopl", 172, 9)
call("ioperm", 173, 0, 0, 0)
call("syslog", 103, 999, None, 0)
call("ptrace a child of its own", 101, 0, 0, None, None)
call("process_vm_readv", 310, 0, None, 0, None, 0, 0)
call("modify_ldt", 154, 99, None, 0)
call("mbind", 237, 0, 0, 99, None, 0, 0)
call("fanotify_init", 300, 0xffffffff, 0)
call("personality that weakens", 135, 0x0040000)
call("raw socket", 41, 2, 3, 1)
call("packet socket", 41, 17, 3, 0)
call("sctp socket", 41, 2, 1, 132)
call("bluetooth socket", 41, 31, 3, 1)
call("vsock socket", 41, 40, 1, 0)
call("kernel crypto socket", 41, 38, 5, 0)
call("netlink audit socket", 41, 16, 3, 9)
call("TIOCSTI", 16, NONSENSE, 0x5412, b"x")
call("TIOCSTI with a bit that the kernel drops", 16, NONSENSE, 0x100005412, b"x")
