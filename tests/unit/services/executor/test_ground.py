"""How many replicas live is told from what their shims wrote down, without a platform."""

from __future__ import annotations

import os
from pathlib import Path

from services.executor import shim
from services.executor.ground import living


def replica(root: Path, name: str, **other: int | str) -> None:
    """A replica whose shim is this process, unless said otherwise."""
    fields: dict[str, int | str] = dict.fromkeys(shim.Head.__slots__, 0)
    fields |= {"boot": shim.boot_id(), "pid": os.getpid(), "reason": "", "detail": ""}
    fields |= {"ticks": shim.started(os.getpid()), "phase": shim.RUNNING, **other}
    folder = root / "replicas" / name
    folder.mkdir(parents=True)
    head = shim.Head(*(fields[slot] for slot in shim.Head.__slots__))
    (folder / "record").write_bytes(head.pack(shim.HEAD_BYTES))


def test_what_has_a_shim_that_lives_is_counted(tmp_path: Path) -> None:
    assert living(tmp_path) == 0
    replica(tmp_path, "runs")
    replica(tmp_path, "waits", phase=shim.BACKOFF)
    assert living(tmp_path) == 2


def test_what_has_ended_or_whose_shim_is_gone_is_not_counted(tmp_path: Path) -> None:
    replica(tmp_path, "ended", phase=shim.ENDED)
    replica(tmp_path, "another-process", ticks=1)
    replica(tmp_path, "another-boot", boot="b")
    assert living(tmp_path) == 0


def test_what_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "replicas" / "begun").mkdir(parents=True)
    (tmp_path / "replicas" / "damaged").mkdir()
    (tmp_path / "replicas" / "damaged" / "record").write_bytes(b"x" * shim.HEAD_BYTES)
    (tmp_path / "replicas" / "stray").write_text("")
    replica(tmp_path, "runs")
    assert living(tmp_path) == 1
