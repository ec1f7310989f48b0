"""Fixtures of the tests with real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.embedded import Nats, free_port
from tests.servers import SERVICES


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Nats]:
    """A server that a test may stop."""
    server = Nats(tmp_path, SERVICES, port=free_port())
    server.start()
    server.wait_ready()
    yield server
    server.stop()
