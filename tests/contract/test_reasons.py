"""Every reason that a caller or a state may show stands in proto/reasons.md, with its sentence."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "proto" / "reasons.md"
TREES = ("chassis", "services", "fermion")
GENERATED = ROOT / "fermion" / "api"
TESTING = ROOT / "chassis" / "testing"

REFUSALS = frozenset(
    {
        "Refused",
        "Missing",
        "Exists",
        "Invalid",
        "Denied",
        "Unauthenticated",
        "Conflict",
        "Expired",
        "Exhausted",
        "Unavailable",
        "OutcomeUnknown",
    }
)
# Name of enumerations of which each member is a reason.
CODES = "Why"
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]*)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def sources() -> Iterator[Path]:
    for tree in TREES:
        for path in sorted((ROOT / tree).rglob("*.py")):
            if GENERATED not in path.parents and TESTING not in path.parents:
                yield path


def owner(path: Path) -> str:
    """Tell whose a file is: the chassis, one service, what services share, or what users install."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] == "services" else parts[0]


def called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def makers(tree: ast.Module) -> frozenset[str]:
    """Name functions of a file that make a refusal of the `reason` that they are given."""
    return frozenset(
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(word.arg == "reason" for word in function.args.args)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and called(node) in REFUSALS and is_parameter(node)
    )


def is_parameter(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Name) and call.args[0].id == "reason"


def code_of(call: ast.Call, tree_makers: frozenset[str], installed: bool) -> ast.expr | None:
    """Find the expression that gives a refusal's or a state's reason; None where it is neither."""
    words = {word.arg: word.value for word in call.keywords}
    if installed:
        # What a user installs hands on what it was told; its own refusals are literals.
        said = words.get("reason")
        return said if isinstance(said, ast.Constant) else None
    if called(call) == "Reason":
        return words.get("code")
    if called(call) in REFUSALS and not is_parameter(call) and call.args:
        return call.args[0]
    return call.args[0] if called(call) in tree_makers and call.args else None


def codes(kind: ast.ClassDef) -> Iterator[str]:
    """Members of an enumeration of reasons: a segment of a bill tells one of them."""
    for node in kind.body if kind.name == CODES else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def given() -> tuple[dict[str, set[str]], list[str]]:
    """Collect the reasons of the code with their owners, and the places where one is no literal."""
    found: dict[str, set[str]] = defaultdict(set)
    hidden: list[str] = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known, where = makers(tree), owner(path)
        for node in ast.walk(tree):
            for listed in codes(node) if isinstance(node, ast.ClassDef) else ():
                found[listed].add(where)
            code = code_of(node, known, where == "fermion") if isinstance(node, ast.Call) else None
            if code is None:
                continue
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                found[code.value].add(where)
            else:
                hidden.append(f"{path.relative_to(ROOT)}:{code.lineno}")
    return found, hidden


def rows() -> list[tuple[str, str, str]]:
    return ROW.findall(TABLE.read_text(encoding="utf-8"))


def test_every_reason_of_the_code_has_a_row() -> None:
    found, _ = given()
    assert set(found) - {reason for reason, _, _ in rows()} == set()


def test_no_row_is_stale() -> None:
    found, _ = given()
    assert {reason for reason, _, _ in rows()} - set(found) == set()


def test_every_row_tells_where_its_reason_is_given() -> None:
    found, _ = given()
    told = {reason: set(where.split(", ")) for reason, where, _ in rows()}
    assert told == {reason: where for reason, where in found.items() if reason in told}


def test_the_rows_are_sorted_and_single() -> None:
    reasons = [reason for reason, _, _ in rows()]
    assert reasons == sorted(set(reasons))


def test_every_row_has_a_sentence() -> None:
    assert [reason for reason, _, sentence in rows() if len(sentence.split()) < 3] == []


def test_a_reason_is_written_where_it_is_given() -> None:
    assert given()[1] == []


def test_every_reason_reads_as_one() -> None:
    found, _ = given()
    assert [reason for reason in found if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", reason)] == []
