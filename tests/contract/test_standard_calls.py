"""Every resource has the standard calls, or stands in the page of decisions that says why not."""

from __future__ import annotations

import re

from google.protobuf.descriptor import MethodDescriptor

from tests.contract.descriptors import ROOT, every_file

PAGE = ROOT / "docs" / "decisions" / "0010-api-exemptions.md"
ROW = re.compile(r"^\| `(\w+)` \| ([\w, ]+) \| (.+) \|$", re.MULTILINE)

VERBS = ("Create", "Get", "List", "Watch", "Update", "Delete")
RESOURCES = (
    *("User", "Project", "Member", "Token", "SigningKey", "Quota", "Cluster"),
    *("Instance", "Template", "QueuedWorkload", "Replica", "ParkedFact", "PriceBook"),
)
# A call that begins so changes nothing.
READS = (
    *("Get", "List", "Watch", "Read", "Stream", "WhoAmI", "Audit"),
    *("Explain", "Outlook", "Estimate"),
)


def calls() -> dict[str, MethodDescriptor]:
    return {
        method.name: method
        for file in every_file()
        for service in file.services_by_name.values()
        for method in service.methods
    }


def named(verb: str, resource: str) -> str:
    return f"{verb}{resource}{'s' if verb in ('List', 'Watch') else ''}"


def wanted_fields(call: str) -> tuple[str, ...]:
    """What the request of a call has to have."""
    fields = () if call.startswith(READS) else ("request_id", "validate_only")
    if call in {named("List", resource) for resource in RESOURCES}:
        return ("filter", "order_by", "page_size", "page_token")
    if call in {named("Watch", resource) for resource in RESOURCES}:
        return ("resume_token", "send_initial")
    if call in {named("Update", resource) for resource in RESOURCES}:
        return (*fields, "update_mask", "etag")
    if call in {named("Delete", resource) for resource in RESOURCES}:
        return (*fields, "etag")
    return fields


def exempt() -> dict[str, set[str]]:
    text = PAGE.read_text(encoding="utf-8")
    return {name: set(without.split(", ")) for name, without, _ in ROW.findall(text)}


def lacking() -> dict[str, set[str]]:
    known = calls()
    found = {
        resource: {verb for verb in VERBS if named(verb, resource) not in known}
        for resource in RESOURCES
    }
    for name, call in known.items():
        has = {field.name for field in call.input_type.fields}
        found[name] = set(wanted_fields(name)) - has
    return {name: what for name, what in found.items() if what}


def test_what_is_lacking_is_what_the_page_says() -> None:
    assert lacking() == exempt()


def test_every_row_of_the_page_says_why() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) == len(exempt())
    assert [name for name, _, why in rows if len(why.split()) < 5] == []


def test_every_resource_that_is_listed_or_got_is_held_to_the_standard() -> None:
    nouns = {
        re.sub(r"s$", "", match[1])
        for name in calls()
        if (match := re.fullmatch(r"(?:Create|Update|Delete|List|Watch|Set)(\w+)", name))
    }
    # What is no resource: facts are read as they were said, use is measured, holdings are summed,
    # a queue is the order of what waits in it, and a cost is a sum.
    assert nouns - {"Fact", "Usage", "Holding", "Queue", "Cost"} == set(RESOURCES) - {"SigningKey"}
