"""One platform for all stories; each story has a project of its own."""

from collections.abc import Iterator

import pytest

from tests.stage import Stage, staged


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A platform that is up."""
    with staged(tmp_path_factory.mktemp("home")) as found:
        yield found
