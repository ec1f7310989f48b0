"""One platform for all stories; each story has a project of its own."""

import uuid
from collections.abc import Iterator

import pytest

from tests.stage import Stage, staged


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A platform that is up."""
    with staged(tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture
def project(stage: Stage) -> str:
    """A fresh project."""
    name = f"p{uuid.uuid4().hex[:10]}"
    stage.ok("projects", "create", name)
    return name
