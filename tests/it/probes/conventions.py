# getpid by the i386 convention and with the x32 bit.
import ctypes, errno, mmap, os


def attempt(name, action):
    child = os.fork()
    if child == 0:
        os._exit(action())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        print(f"{name}: killed by {os.WTERMSIG(status)}", flush=True)
    else:
        code = os.WEXITSTATUS(status)
        print(f"{name}: {errno.errorcode.get(code, 'got through')}", flush=True)


def i386():
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    place = ctypes.addressof(ctypes.c_char.from_buffer(page))
    ctypes.CFUNCTYPE(ctypes.c_int)(place)()
    return 0


def x32():
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(0x40000000 | 39)) == -1 else 0


attempt("i386", i386)
attempt("x32", x32)
