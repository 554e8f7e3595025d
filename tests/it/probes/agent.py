# Attacks of a job on process 1, its agent. Prints "attack: ERRNO", or what it got.
import ctypes, errno, os, signal, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(4096)


def call(name, number, *arguments):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    print(f"{name}: {errno.errorcode.get(ctypes.get_errno(), '?') if got == -1 else f'got {got}'}", flush=True)


def read(name):
    try:
        with open(name, "rb", 0) as file:
            print(f"read {name}: got {file.read(16)!r}")
    except OSError as error:
        print(f"read {name}: {errno.errorcode[error.errno]}")


def write(name, text):
    try:
        with open(name, "wb", 0) as file:
            file.write(text)
        print(f"write {name}: done")
    except OSError as error:
        print(f"write {name}: {errno.errorcode[error.errno]}")


for number in 0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1:
    call(f"kill {number}", 62, 1, int(number))
    call(f"tgkill {number}", 234, 1, 1, int(number))
    call(f"rt_sigqueueinfo {number}", 129, 1, int(number), struct.pack("iii", int(number), 0, -1).ljust(128, b"\0"))

for name in "mem", "environ", "maps", "stack", "syscall", "auxv", "cmdline", "status", "cgroup", "oom_score", "fd/0", "exe":
    read(f"/proc/1/{name}")
write("/proc/1/oom_score_adj", b"1000")
write("/proc/1/mem", b"x")
write("/proc/1/setgroups", b"allow")
for link in "root", "cwd", "exe", "ns/net", "ns/user", "fd/0":
    try:
        print(f"readlink /proc/1/{link}: got {os.readlink(f'/proc/1/{link}')}")
    except OSError as error:
        print(f"readlink /proc/1/{link}: {errno.errorcode[error.errno]}")

one_second = struct.pack("QQ", 1, 1)
call("prlimit CPU", 302, 1, 0, one_second, None)
call("prlimit NOFILE", 302, 1, 7, struct.pack("QQ", 0, 0), None)
call("prlimit, only asking", 302, 1, 0, None, buffer)
call("setpriority of the process", 141, 0, 1, 19)
call("setpriority of the user", 141, 2, 0, 19)
call("setpriority of the group", 141, 1, 1, 19)
call("ioprio_set idle", 251, 1, 1, 3 << 13)
call("ioprio_set idle for the user", 251, 3, 0, 3 << 13)
call("sched_setaffinity", 203, 1, 8, struct.pack("Q", 1))
call("sched_setscheduler idle", 144, 1, 5, struct.pack("i", 0))
call("sched_setparam", 142, 1, struct.pack("i", 0))
call("sched_setattr", 314, 1, struct.pack("IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0), 0)
for request, name in (16, "attach"), (0x4206, "seize"):
    call(f"ptrace {name}", 101, request, 1, None, None)
vector = struct.pack("PN", ctypes.addressof(buffer), 8)
call("process_vm_readv", 310, 1, vector, 1, struct.pack("PN", 0x400000, 8), 1, 0)
call("process_vm_writev", 311, 1, vector, 1, struct.pack("PN", 0x400000, 8), 1, 0)
call("kcmp", 312, 1, os.getpid(), 0, 0, 0)
call("move_pages", 279, 1, 0, None, None, None, 0)
call("migrate_pages", 256, 1, 0, None, None)
call("setns of the agent", 308, 1, 0x40000000)
call("setpgid", 109, 1, os.getpid())

# A pidfd of the agent may be had; what can be done with it may not.
pidfd = libc.syscall(434, 1, 0)
if pidfd >= 0:
    call("pidfd_send_signal", 424, pidfd, 9, None, 0)
    call("pidfd_getfd", 438, pidfd, 0, 0)
    call("process_madvise", 440, pidfd, vector, 1, 4, 0)
    call("process_mrelease", 448, pidfd, 0)
    call("setns by pidfd", 308, pidfd, 0x20000000)
sys.exit(7)
