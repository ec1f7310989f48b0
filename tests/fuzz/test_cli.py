"""Every command, asked for what it cannot do: it says what is wrong and what to do, and how it ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from chassis.embedded import free_port
from fermion.cli import help, run
from tests.fuzz.conftest import Ground
from tests.stage import FERMION

PAGES: Final = help.kept()
# What is called: groups have pages, too, and commands below them.
COMMANDS: Final = [
    words for words in PAGES if not any(other.startswith(f"{words} ") for other in PAGES)
]
# These become another program, so they are asked in a process of their own.
BECOMING: Final = ("up", "down", "backup", "restore")
# These work on this machine alone, and well with any word.
LOCAL: Final = ("version", "contexts", "completion")
CALLING: Final = [words for words in COMMANDS if words.split()[0] not in (*BECOMING, *LOCAL)]
WORDS: Final = (
    *("../../etc/passwd", "projects/-", "projects/", "-", "--", "\udcff", "\x1b[2J\x07", "a\nb"),
    *("'; DROP TABLE x; --", "x" * 5000, "\u202e", "*", "", "İ", "\ud800"),
)
OPTIONS: Final = (
    ("--no-such-option",),
    ("--output", "nonsense"),
    ("--timeout", "nan"),
    ("--timeout", "-1"),
    ("--timeout", "many"),
    ("--context", "none-of-that-name"),
    ("--context", "\udcff"),
    ("--project", "\udcff"),
    ("-p",),
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own, and a server that is not there."""
    for name in [one for one in os.environ if one.startswith("FERMION_")]:
        monkeypatch.delenv(name)
    # `completion install` writes there.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FERMION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FERMION_ADDRESS", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("FERMION_TOKEN", "none")
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


def heard(capsys: pytest.CaptureFixture[str], words: Sequence[str], *, refused: bool = True) -> str:
    """Run a command that cannot go well; what it said."""
    try:
        code = run(list(words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err, (words, out, err)
    assert "please report it" not in err, (words, err)
    if refused or code:
        assert code in range(1, 8), (words, code, out, err)
        # `doctor` answers what it was asked, and how to mend it.
        assert "what to do: " in err or "mend: " in out, (words, out, err)
    # What was said goes to a terminal, whatever it quotes.
    assert "\x1b[2J" not in out + err
    (out + err).encode()
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_there_is_not_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    heard(capsys, [*command.split(), "--no-such-option"])
    heard(capsys, [*command.split(), *("word",) * 20])


@pytest.mark.parametrize("command", CALLING)
def test_without_a_server_a_command_says_that_there_is_none(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in range(4):
        heard(capsys, [*command.split(), *("word",) * count, "--timeout", "0.1"])


@pytest.mark.parametrize("command", BECOMING)
def test_what_becomes_another_program_refuses_what_it_cannot_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FERMION_ADDRESS")
    asked: list[tuple[str, ...]] = [("--no-such-option",), ("word", "word", "word")]
    if command in ("backup", "restore"):
        # The last one is no argument that a process can be given.
        asked += [(word,) for word in WORDS if word != "\ud800"]
    for words in asked:
        done = subprocess.run(
            [FERMION, command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode in range(1, 8), (words, done)
        assert b"Traceback" not in said, (words, done)
        assert b"what to do: " in said, (words, done)
        assert b"\x1b[2J" not in said, (words, done)
    # Nothing that was refused has left anything.
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


@pytest.mark.parametrize("command", CALLING)
def test_words_and_options_of_any_kind_are_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in OPTIONS:
        heard(capsys, [*command.split(), "word", *option])
    for word in WORDS:
        heard(capsys, [*command.split(), word, "--timeout", "0.05"])


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.split()[0] in LOCAL])
def test_what_needs_no_server_takes_any_word_or_refuses_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in WORDS:
        heard(capsys, [*command.split(), word], refused=False)


def files(folder: Path) -> Mapping[str, Path]:
    """Files that are none of what is asked for."""
    found = {
        name: folder / name
        for name in ("binary", "broken", "list", "deep", "bomb", "unknown", "empty", "latin")
    }
    found["binary"].write_bytes(bytes(range(256)) * 20)
    found["broken"].write_text("name: [a, b\n  c: {\n")
    found["list"].write_text("- a\n- b\n")
    found["deep"].write_text("[" * 5000)
    # Each is twice the one before: 2^24 words, if somebody counts them.
    doubles = (f"k{now}: &k{now} [*k{now - 1}, *k{now - 1}]" for now in range(1, 24))
    found["bomb"].write_text("\n".join(("k0: &k0 [x, x]", *doubles)))
    found["unknown"].write_text(
        "nothing_of_that_name: 1\nname: 2026-11-01\nspec: !!python/object x\n"
    )
    found["empty"].write_text("")
    found["latin"].write_bytes("name: é\n".encode("latin-1"))
    loop = folder / "loop"
    loop.symlink_to(loop)
    return {**found, "folder": folder, "missing": folder / "none", "loop": loop}


@pytest.mark.parametrize(
    "command",
    [
        "instances create x -f",
        "instances update x -f",
        "templates set x -f",
        "prices publish",
        "prices diff",
    ],
)
def test_a_file_that_is_none_of_what_is_asked_for_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in files(tmp_path).values():
        words = [*command.split(), str(path), "--timeout", "0.1"]
        heard(capsys, [*words, "-p", "own"] if "instances" in command else words)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "\0", '{"current": 5}', '{"contexts": []}']
)
def test_contexts_that_cannot_be_read_are_told(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FERMION_ADDRESS")
    path = tmp_path / "home" / "cli" / "contexts.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for words in (["contexts", "list"], ["whoami", "--timeout", "0.1"], ["contexts", "use", "x"]):
        heard(capsys, words, refused=False)
    path.unlink()
    path.mkdir()
    heard(capsys, ["whoami", "--timeout", "0.1"])


def test_names_that_there_are_not_are_told_by_who_knows(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FERMION_ADDRESS", ground.stage.address)
    monkeypatch.setenv("FERMION_TOKEN", ground.tokens["ada"])
    for words in (
        ("instances", "get", "nothing", "-p", "own"),
        ("instances", "logs", "nothing", "-p", "own"),
        ("instances", "list", "-p", "nowhere"),
        ("projects", "get", "nowhere"),
        ("members", "set", "nobody", "viewer", "-p", "own"),
        ("templates", "get", "nothing"),
        ("users", "create", "somebody"),
        ("queue", "explain", "nothing", "-p", "own"),
        ("cost", "explain", "nothing", "-p", "foreign"),
        ("events", "list", "nothing", "-p", "own"),
        ("instances", "create", "\udcff", "--kind", "notebook", "-p", "own"),
        ("instances", "list", "-p", "own", "--filter", "\udcff"),
        ("instances", "list", "-p", "own", "--filter", "nonsense"),
    ):
        heard(capsys, words)
