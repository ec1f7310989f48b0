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


def test_what_people_write_holds_no_control_characters() -> None:
    line, text = r"^[^\p{Cc}\p{Zl}\p{Zp}]*$", r"^([^\p{Cc}]|[\t\n\r])*$"
    rules = {"display_name": line, "email": line, "description": text}
    found = {
        field.full_name: field.GetOptions().Extensions[validate_pb2.field].string.pattern
        for message in every_message()
        for field in message.fields
        if field.name in rules and not message.file.name.endswith("events.proto")
    }
    # What a cluster tells of itself is no text of a caller's.
    found.pop("fermion.api.workload.v1.Capabilities.Runnable.description")
    assert len(found) >= 9
    assert {name: rules[name.rsplit(".", 1)[1]] for name in found} == found


def test_every_pattern_has_its_words() -> None:
    found = patterns()
    assert len(found) > 20
    assert [pattern for pattern in found if pattern_words(pattern) is None] == []
