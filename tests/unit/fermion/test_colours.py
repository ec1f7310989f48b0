"""The blocking client and the one of asyncio differ in `await` alone."""

from __future__ import annotations

import ast

import pytest

from tests.unit.fermion.colours import CLIENT, FACES, blocking


def meaning(text: str) -> str:
    """What a file says, in whatever order its imports stand."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            node.names.sort(key=lambda alias: alias.name)
    return ast.dump(tree)


@pytest.mark.parametrize("face", FACES)
def test_a_blocking_face_is_the_one_of_asyncio_without_await(face: str) -> None:
    made = blocking((CLIENT / "aio" / f"{face}.py").read_text())
    kept = (CLIENT / f"{face}.py").read_text()
    assert meaning(made) == meaning(kept), (
        "Change fermion/aio, then: python -m tests.unit.fermion.colours"
    )
