"""
Starts a program that ends with its parent, and that need not be root: one file on the standard library.

    python -I -S launcher.py PARENT_PID DEATH_SIGNAL UID GID -- COMMAND ...

UID and GID other than `-` put the program into a user namespace of its own, where root outside is
that id inside: PostgreSQL refuses to run as root, and this asks for no user to be added and no
folder to be opened. The death signal is set last, since a change of credentials takes it away.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
# What the parent reads as "this kernel or container allows no user namespace".
EXIT_NO_NAMESPACE = 97


def main() -> None:
    """Become the command."""
    parent, death, uid, gid = sys.argv[1:5]
    command = sys.argv[6:]
    libc = ctypes.CDLL(None, use_errno=True)
    if uid != "-":
        outside_uid, outside_gid = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWUSER) != 0:
            sys.exit(EXIT_NO_NAMESPACE)
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {outside_uid} 1"),
                ("gid_map", f"{gid} {outside_gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        except OSError:
            sys.exit(EXIT_NO_NAMESPACE)
    if libc.prctl(PR_SET_PDEATHSIG, int(death)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the signal was asked for.
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)


main()
