"""Chapters about what really runs: a program, a notebook, what waits, and what outlives the platform."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import psutil
from story import Platform, Story, until

PROJECT = "demo"
SMALL = ("--cpu", "200m", "--memory", "128MiB")
# Writes down each of its own starts on its volume, answers on its port, and crashes when asked to.
PROGRAM = """
import http.server, os, time
with open("starts", "a") as file:
    file.write(f"{time.time_ns()}\\n")
print("greeting is", os.environ["GREETING"], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["GREETING"].encode())
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["FERMION_PORT_WEB"])), Handler).serve_forever()
"""
# Runs one cell through the notebook's own API, as its page in a browser would.
CELL = """
import json, os, uuid, urllib.request, websocket
port, token = os.environ["FERMION_PORT_JUPYTER"], os.environ["JUPYTER_TOKEN"]
asked = urllib.request.Request(
    f"http://127.0.0.1:{port}/api/kernels", method="POST", data=b"{}",
    headers={"Authorization": f"token {token}"})
kernel = json.load(urllib.request.urlopen(asked))["id"]
channel = websocket.create_connection(
    f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?token={token}", timeout=60)
header = {"msg_id": uuid.uuid4().hex, "username": "", "session": uuid.uuid4().hex,
          "msg_type": "execute_request", "version": "5.3"}
channel.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "channel": "shell",
    "content": {"code": "print(6 * 7)", "silent": False, "store_history": False,
                "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}}))
while True:
    said = json.loads(channel.recv())
    if said["msg_type"] == "stream" and said["parent_header"].get("msg_id") == header["msg_id"]:
        print("the cell printed", said["content"]["text"].strip())
        break
"""


def instance(platform: Platform, name: str) -> dict[str, object]:
    """One instance as the API has it; empty where there is none."""
    answer = platform.cli("instances", "get", name, "-o", "json", show=False)
    found: dict[str, object] = json.loads(answer.out) if answer.code == 0 else {}
    return found


def status(platform: Platform, name: str) -> dict[str, object]:
    """Where it stands."""
    found = instance(platform, name).get("status")
    return dict(found) if isinstance(found, dict) else {}


def address(platform: Platform, name: str, port: str) -> str:
    """Where one of its ports answers."""
    found = status(platform, name).get("addresses")
    return str(found[port]) if isinstance(found, dict) and port in found else ""


def get(url: str) -> str:
    """What a URL answers; empty where nothing does."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except (OSError, urllib.error.URLError):
        return ""


def program(story: Story, platform: Platform) -> None:
    """A program of one's own: port, environment, files, a crash, a stop and a start."""
    platform.cli(
        *("instances", "create", "tool", "--kind", "custom", "--image", "host"),
        *("--port", "web:8000", "--env", "GREETING=hello", "--storage", "1GiB", *SMALL),
        *("--restart", "on-failure", "--wait", "running", "--", "python3", "-c", PROGRAM),
        show=False,
    )
    print("\n  $ fermion instances create tool --kind custom --image host --port web:8000 \\")
    print("        --env GREETING=hello --storage 1GiB --restart on-failure -- python3 -c …")
    platform.cli("instances", "get", "tool")
    story.check(
        "a program runs: its port answers with what its environment says",
        until(20, lambda: get(f"http://{address(platform, 'tool', 'web')}") == "hello"),
        status(platform, "tool"),
    )
    inside = platform.cli("instances", "exec", "tool", "--", "sh", "-c", "echo kept > note; exit 7")
    story.check("a command inside it passes its own exit code on", inside.code == 7, inside)

    print("\n  (it is asked to crash)")
    get(f"http://{address(platform, 'tool', 'web')}/crash")
    story.check(
        "it is run again after a back-off, and counts that it was",
        until(30, lambda: status(platform, "tool").get("restarts") == 1)
        and until(20, lambda: status(platform, "tool").get("state") == "STATE_RUNNING"),
        status(platform, "tool"),
    )
    events = platform.cli("events", "list", "tool", "-o", "json", show=False).out
    story.check(
        "the back-off and the exit code stand in its history",
        all(word in events for word in ("InstanceBackedOff", "InstanceRunEnded", '"exit_code": 3')),
        events[-400:],
    )
    logs = platform.cli("instances", "logs", "tool")
    story.check(
        "its logs have both runs, and --previous the first alone",
        logs.out.count("greeting is hello") == 2
        and platform.cli("instances", "logs", "tool", "--previous", show=False).out.count("hello")
        == 1,
        logs,
    )
    platform.cli("replicas", "tool")

    platform.cli("instances", "stop", "tool", "--wait", "stopped")
    platform.cli("instances", "start", "tool", "--wait", "running")
    note = platform.cli("instances", "exec", "tool", "--", "cat", "note")
    story.check("its files are still there after a stop and a start", note.out == "kept\n", note)


def notebook(story: Story, platform: Platform) -> None:
    """JupyterLab, ready when it answers, with a token of its own."""
    print("  (the first time its environment is built, from locked packages: half a minute or so)")
    platform.cli(
        *("instances", "create", "notes", "--kind", "notebook", "--storage", "1GiB"),
        *("--cpu", "500m", "--memory", "1GiB", "--wait", "running", "--wait-timeout", "8m"),
    )
    events = platform.cli("events", "list", "notes", "-o", "json", show=False).out
    story.check(
        "it was STARTING while its environment was made, and RUNNING when its probe passed",
        status(platform, "notes").get("state") == "STATE_RUNNING" and "InstanceReady" in events,
        status(platform, "notes"),
    )
    opened = platform.cli("instances", "open", "notes", "--print")
    url = opened.out.strip().splitlines()[-1] if opened.out.strip() else ""
    bare = url.split("?")[0].removesuffix("/") + "/api/status"
    story.check(
        "its URL carries a token, and nobody gets in without it",
        "token=" in url and not get(bare) and "kernels" in get(f"{bare}?{url.split('?')[-1]}"),
        url,
    )
    ran = platform.cli("instances", "exec", "notes", "--", "python", "-c", CELL, show=False)
    print(f"  {ran.out.strip()}")
    story.check("a cell is run through its API", "the cell printed 42" in ran.out, ran)
    platform.cli("instances", "top", show=True)
    platform.cli("instances", "delete", "notes")


def waiting(story: Story, platform: Platform) -> None:
    """What has to wait says why, and goes on when there is room."""
    platform.cli(
        *("instances", "create", "greedy", "--kind", "custom", "--image", "host", "--gpu", "2"),
        *(*SMALL, "--", "sleep", "60"),
    )
    until(10, lambda: "reason" in status(platform, "greedy"))
    platform.cli("queue", "list")
    explained = platform.cli("queue", "explain", "greedy")
    story.check(
        "more GPUs than the cluster has: it waits, and says what is short",
        status(platform, "greedy").get("state") == "STATE_PENDING" and "GPU" in explained.out,
        (status(platform, "greedy"), explained),
    )
    platform.cli("instances", "delete", "greedy")

    platform.cli("quotas", "set", "-p", PROJECT, "--instances", "2")
    sleeps = ("--kind", "custom", "--image", "host", *SMALL)
    for name in ("one", "two"):
        platform.cli("instances", "create", name, *sleeps, "--", "sleep", "600", show=False)
    until(20, lambda: status(platform, "one").get("state") == "STATE_RUNNING")
    platform.cli("quotas", "get", "-p", PROJECT)
    why = status(platform, "two")
    reason = why.get("reason")
    story.check(
        "beyond the project's quota: it is queued, with the reason",
        why.get("state") == "STATE_PENDING"
        and isinstance(reason, dict)
        and reason.get("code") == "QUOTA",
        why,
    )
    platform.cli("queue", "explain", "two")
    platform.cli("instances", "stop", "one", "--wait", "stopped")
    story.check(
        "and admitted as soon as something stops",
        until(20, lambda: status(platform, "two").get("state") == "STATE_RUNNING"),
        status(platform, "two"),
    )
    platform.cli("quotas", "clear", "-p", PROJECT)
    for name in ("one", "two"):
        platform.cli("instances", "delete", name, show=False)


def outlives(story: Story, platform: Platform, folder: Path) -> None:
    """SIGKILL of everything but the replicas: what runs is adopted, what ended has its true end."""
    wrote = folder / "ended"
    sleeps = ("--kind", "custom", "--image", "host", *SMALL, "--wait", "running")
    platform.cli("instances", "create", "stays", *sleeps, "--", "sleep", "600")
    script = f"sleep 5; date +%s%N > {wrote}.part; mv {wrote}.part {wrote}"
    platform.cli("instances", "create", "ends", *sleeps, "--", "sh", "-c", script, show=False)
    before = replicas(platform, "stays")
    assert platform.process is not None
    victims = [*platform.processes(), psutil.Process(platform.process.pid)]
    for victim in victims:
        victim.kill()
    platform.process.wait()
    psutil.wait_procs(victims, timeout=10)
    print(f"  killed: {len(victims)} processes, PostgreSQL and NATS among them; replicas run on")
    story.check("a program ended by itself while nobody watched", until(30, wrote.exists), "")
    time.sleep(1.0)
    platform.up()
    story.check(
        "what kept running was adopted: the same replica, the same run",
        replicas(platform, "stays") == before
        and status(platform, "stays").get("state") == "STATE_RUNNING",
        (before, replicas(platform, "stays")),
    )
    story.check(
        "what ended is STOPPED",
        until(20, lambda: status(platform, "ends").get("state") == "STATE_STOPPED"),
        status(platform, "ends"),
    )
    own, stated = int(wrote.read_text()) / 1e6, end_of(platform, "ends") * 1000
    print(f"  its own word and the stated end differ by {stated - own:.1f} ms")
    story.check("with its true end, within 50 ms", abs(stated - own) <= 50, (own, stated))
    for name in ("stays", "ends", "tool"):
        platform.cli("instances", "delete", name, show=False)


def replicas(platform: Platform, name: str) -> list[tuple[object, object]]:
    """The replicas of an instance, and the run of each."""
    answer = platform.cli("replicas", name, "-o", "json", show=False)
    found = json.loads(answer.out or "[]")
    rows = found if isinstance(found, list) else found.get("replicas", [])
    return [(row["uid"], row.get("run", 0)) for row in rows]


def end_of(platform: Platform, name: str) -> float:
    """When its last run ended, in seconds since 1970, as the facts have it."""
    answer = platform.cli("replicas", name, "-o", "json", show=False)
    found = json.loads(answer.out or "[]")
    rows = found if isinstance(found, list) else found.get("replicas", [])
    text = str(rows[0].get("end_time") or rows[0].get("endTime"))
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def leave(platform: Platform) -> None:
    """End what a broken demonstration left running."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("shim.py") for word in words) and str(platform.home) in " ".join(
            words
        ):
            process.kill()
