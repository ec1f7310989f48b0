"""Facts that a release has stored are read for ever, and say what they said."""

from __future__ import annotations

import base64
import json

import pytest
from google.protobuf import json_format

from chassis.envelope import Registry
from services.serve import TARGETS
from tests.contract.facts import CORPUS, types

RELEASES = sorted(CORPUS.glob("*.jsonl"))
REGISTRY = Registry.of(
    tuple({file.name: file for target in TARGETS.values() for file in target.events}.values())
)
ROWS = [
    (path.stem, json.loads(line)) for path in RELEASES for line in path.read_text().splitlines()
]


@pytest.mark.parametrize(("release", "row"), ROWS, ids=[f"{at} {row['type']}" for at, row in ROWS])
def test_a_stored_fact_says_what_it_said(release: str, row: dict[str, object]) -> None:
    data = base64.b64decode(str(row["data"]))
    message = REGISTRY.decode(str(row["type"]), data)
    assert message is not None, f"{row['type']} of {release} is not known any more"
    said = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert said == row["says"]
    # Not a byte of it is lost when it is written again, as a backup or a relay does.
    assert message.SerializeToString(deterministic=True) == data


def test_every_type_of_fact_of_the_last_release_is_kept() -> None:
    assert RELEASES, "there is a release"
    stored = {row["type"] for _, row in ROWS}
    # What came after the last release is stored with the next one.
    assert stored <= set(types())
    assert len(stored) > 50
