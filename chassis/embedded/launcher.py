"""
Starts a program that ends with its parent, and that need not be root: one file on the standard library.

    python -I -S launcher.py PARENT_PID DEATH_SIGNAL STANDING UID GID -- COMMAND ...

PostgreSQL refuses to run as root, and adding a user or opening folders to one is not ours to do.
With STANDING `namespace` the program gets a user namespace of its own, where root outside is UID
inside. With `account` it becomes UID and keeps one capability, to pass the private folders on the
way to its files. The death signal is set last, since a change of credentials takes it away.
"""

import ctypes
import os
import sys

PR_SET_KEEPCAPS = 8
PR_SET_PDEATHSIG = 1
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CLONE_NEWUSER = 0x10000000
# What the parent reads as "this kernel or container does not allow it".
EXIT_NOT_ALLOWED = 97


def main() -> None:
    """Become the command."""
    parent, death, standing, uid, gid = sys.argv[1:6]
    command = sys.argv[7:]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if standing == "namespace":
            enter_namespace(libc, int(uid), int(gid))
        elif standing == "account":
            become_account(libc, int(uid), int(gid))
    except OSError:
        sys.exit(EXIT_NOT_ALLOWED)
    check(libc.prctl(PR_SET_PDEATHSIG, int(death), 0, 0, 0))
    # The parent may have died before the signal was asked for.
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)


def enter_namespace(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """Be UID and GID in a user namespace of one's own, and who one was to everybody else."""
    outside_uid, outside_gid = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outside_uid} 1"),
        ("gid_map", f"{gid} {outside_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def become_account(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    """Be UID and GID, with nothing of root but the way through its folders."""
    check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    mask = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: the lower 32 capabilities, then the upper ones.
    check(libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)))
    check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0))


def check(result: int) -> None:
    """Raise what a call into the kernel left behind."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
