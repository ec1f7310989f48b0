"""
What the workloads of the cluster suite do, step by step: a program of the local cluster.

    python -I -S program.py STEP ...

`tests/memory_cluster.py` plays the same steps in memory.
"""

import os
import signal
import socket
import sys
import time


def tell(text: str) -> None:
    print(text, flush=True)


def step(word: str, rest: str) -> None:
    """Do one of them."""
    match word:
        case "print":
            tell(rest)
        case "raw":
            os.write(1, rest.encode())
        case "error":
            print(rest, file=sys.stderr, flush=True)
        case "env":
            tell(f"{rest}={os.environ.get(rest, '-')}")
        case "names":
            tell(" ".join(sorted(os.environ)))
        case "sleep":
            time.sleep(float(rest))
        case "exit":
            os._exit(int(rest))
        case "kill":
            os.kill(os.getpid(), int(rest))
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "obedient":
            signal.signal(signal.SIGTERM, lambda *_: told(int(rest)))
        case "report":
            with open(os.environ["FERMION_EXIT_FILE"], "w") as file:
                file.write(rest)
        case "append":
            name, _, text = rest.partition("=")
            with open(name, "a") as file:
                file.write(text)
        case "show":
            with open(rest) as file:
                tell(file.read())
        case "child":
            # It ignores TERM, and outlives whoever began it.
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.setsid()
                time.sleep(600)
        case "grow":
            held = bytearray(int(rest))
            for place in range(0, len(held), 4096):
                held[place] = 1
        case "serve":
            serve(int(os.environ[f"FERMION_PORT_{rest.upper()}"]))
        case "spin":
            until = time.process_time() + float(rest)
            while time.process_time() < until:
                pass
        case "stay":
            while True:
                time.sleep(60)
        case "echo":
            for line in sys.stdin:
                tell(line.rstrip("\n"))
        case "size":
            found = os.get_terminal_size(0)
            tell(f"{found.lines}x{found.columns}")
        case "resized":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
            tell("waiting")
            signal.sigwait({signal.SIGWINCH})
            step("size", "")
        case _:
            sys.exit(f"no such step: {word}")


def told(code: int) -> None:
    """Say what the notice says, and leave."""
    with open(os.environ["FERMION_NOTICE_FILE"]) as file:
        tell(file.read().strip())
    os._exit(code)


def serve(port: int) -> None:
    """Answer every question well, for as long as there is no file `sick`."""
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            guest, _ = server.accept()
            with guest:
                guest.recv(4096)
                status = "500 No" if os.path.exists("sick") else "200 Yes"
                guest.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


for argument in sys.argv[1:]:
    step(*argument.partition(":")[::2])
