"""Every pattern that a field has to match is told in words to those who break it."""

from __future__ import annotations

from buf.validate import validate_pb2
from chassis.fields import pattern_words
from tests.contract.descriptors import every_message


def patterns() -> set[str]:
    found: set[str] = set()
    for message in every_message():
        for field in message.fields:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            for one in (
                rules,
                rules.map.keys,
                rules.map.values,
                rules.repeated.items,
            ):
                if one.string.pattern:
                    found.add(one.string.pattern)
    return found


def test_every_pattern_has_its_words() -> None:
    found = patterns()
    assert len(found) > 20
    assert [pattern for pattern in found if pattern_words(pattern) is None] == []
