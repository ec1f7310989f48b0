"""
Enters a replica and becomes a command there: one file on the standard library.

    python -I -S enter.py PARENT TTY [CGROUP ...] -- COMMAND ...

It ends with who started it, joins the control groups of the replica, and with TTY `tty` makes its
input its terminal. What is exported to it is the replica's own environment.
"""

import ctypes
import fcntl
import os
import sys
import termios

PR_SET_PDEATHSIG = 1
SIGKILL = 9
# As a shell says that it found no such command.
EXIT_NOT_FOUND = 127


def main() -> None:
    """Become the command."""
    parent, tty = sys.argv[1:3]
    at = sys.argv.index("--")
    groups, command = sys.argv[3:at], sys.argv[at + 1 :]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    # The parent may have died before the signal was asked for.
    if os.getppid() != int(parent):
        sys.exit(1)
    for group in groups:
        with open(f"{group}/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))
    if tty == "tty":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_NOT_FOUND)


if __name__ == "__main__":
    main()
