"""Prices, and what costs money: versions that are published and never changed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter
from cyclopts.completion import CompletionContext

from fermion import pricebook
from fermion.api.billing import v1 as api
from fermion.api.workload import v1 as workload
from fermion.cli import bill, near, read, show, text
from fermion.cli.options import COMPLETION_SECONDS, Options, note
from fermion.cli.show import Column
from fermion.errors import Error, NotFound, Unavailable

if TYPE_CHECKING:
    from fermion.client import Client

app = App(name="prices", help="Prices, and what costs money.")

AN_EXAMPLE: Final = "fermion prices show --as-file prints one."
UNITS: Final = {
    api.DIMENSION_GPU: "a GPU and hour",
    api.DIMENSION_CPU: "a core and hour",
    api.DIMENSION_MEMORY: "a GiB and hour",
    api.DIMENSION_STORAGE: "a GiB and hour",
}


def versions(_: CompletionContext) -> list[str]:
    """What TAB offers for a version of prices."""
    with Options(timeout=COMPLETION_SECONDS).client() as client:
        return [text.line(one.version) for one in client.prices.list().price_books]


@dataclass(frozen=True, slots=True)
class Listed:
    """A version as a list shows it."""

    book: api.PriceBook
    in_force: int

    @property
    def standing(self) -> str:
        """Whether it counts now, did, or will."""
        if self.book.number == self.in_force:
            return "in force"
        return "later" if self.book.number > self.in_force else "before"


COLUMNS: tuple[Column[Listed], ...] = (
    Column("VERSION", lambda one: one.book.version),
    Column("STANDING", lambda one: one.standing),
    Column("EFFECTIVE", lambda one: _effective(one.book)),
    Column("CURRENCY", lambda one: one.book.currency),
    Column("NUMBER", lambda one: str(one.book.number)),
    Column("PUBLISHED", lambda one: show.moment(one.book.publish_time), wide=True),
)

PriceFile = Annotated[
    Path, Parameter(help="YAML of prices, - for stdin.", allow_leading_hyphen=True)
]


@app.command(name="list")
def list_(*, options: Options = Options()) -> None:
    """List the versions of prices, newest first, and which one is in force."""
    with options.client() as client:
        found = client.prices.list()
    if options.output not in ("table", "wide") or not found.price_books:
        show.many(found.price_books, options.output, (), "No prices have been published.")
        return
    columns = show.chosen_of(COLUMNS, options.output)
    listed = [Listed(book, found.in_force) for book in found.price_books]
    rows = [[column.cell(one) for column in columns] for one in listed]
    show.table([column.head for column in columns], rows, options.output)


@app.command(name="show")
def show_(
    version: Annotated[
        str, Parameter(help="A version, instead of the one in force.", completer=versions)
    ] = "",
    /,
    *,
    as_file: Annotated[bool, Parameter(help="As the file that publishes it.")] = False,
    options: Options = Options(),
) -> None:
    """Show prices, and what of its time costs money: those in force, or of a version."""
    with options.client() as client:
        found = client.prices.list()
    book = _one(found, version)
    if as_file:
        # It was in force from then on, and prices cannot be published for what is over.
        book.ClearField("effective_time")
        print(text.lines(pricebook.written(book)), end="")
        return
    show.one(book, options.output, lambda: _text(Listed(book, found.in_force)))


@app.command
def diff(file: PriceFile, /, *, options: Options = Options()) -> int:
    """
    Show how a file differs from the prices in force.

    Exit code 0: it does not. 1: it does. 2 and more: nobody can tell.
    """
    book = pricebook.parse(read.content(file, AN_EXAMPLE, "FILE"), str(file))
    try:
        with options.client() as client:
            present = _in_force(client)
    except Error as error:
        if type(error) is not Error:
            raise
        # It has the exit code of a difference, and is none.
        raise Unavailable(
            error.message, reason=error.reason, request_id=error.request_id
        ) from error
    if present is not None and not book.HasField("effective_time"):
        present.ClearField("effective_time")
    before = "" if present is None else pricebook.written(present)
    after = pricebook.written(book)
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "in force", str(file), lineterm=""
    )
    found = "\n".join(lines)
    if found:
        print(text.lines(found))
    return 1 if found else 0


@app.command
def publish(
    file: PriceFile,
    /,
    *,
    effective: Annotated[
        str, Parameter(help="In force from then on, instead of what the file says [at once].")
    ] = "",
    dry_run: Annotated[bool, Parameter(help="Check it; change nothing.")] = False,
    options: Options = Options(),
) -> None:
    """
    Publish prices from a moment on; what runs then is cut at that instant.

    A version is never changed and never used twice. For example:

        fermion prices show --as-file > prices.yaml
        fermion prices diff prices.yaml
        fermion prices publish prices.yaml --effective 2026-12-01T00:00:00Z
    """
    book = pricebook.parse(read.content(file, AN_EXAMPLE, "FILE"), str(file))
    if effective:
        at = read.moment("--effective", effective)
        book.effective_time.FromDatetime(at.replace(microsecond=at.microsecond // 1000 * 1000))
    with options.client() as client:
        made = client.prices.publish(book, validate_only=dry_run)
    if dry_run and options.output in ("table", "wide"):
        note("Nothing was published; it would be:")
    show.one(made, options.output, lambda: _text(Listed(made, 0)))


def _one(found: api.ListPriceBooksResponse, version: str) -> api.PriceBook:
    """The book of a version, or the one in force."""
    for book in found.price_books:
        if book.version == version if version else book.number == found.in_force:
            return book
    if not version:
        raise NotFound(
            "No prices are in force.",
            reason="PRICE_BOOK_NOT_FOUND",
            next_step="Publish some: fermion prices publish FILE",
        )
    known = near.near(version, (book.version for book in found.price_books))
    hint = f"Did you mean {' or '.join(known)}? " if known else ""
    raise NotFound(
        f"There are no prices of version {version!r}.",
        reason="PRICE_BOOK_NOT_FOUND",
        arguments={"version": version},
        next_step=f"{hint}See which there are: fermion prices list",
    )


def _in_force(client: Client) -> api.PriceBook | None:
    found = client.prices.list()
    return next((one for one in found.price_books if one.number == found.in_force), None)


def _effective(book: api.PriceBook) -> str:
    """From when on; the first one is in force from all beginning."""
    return show.moment(book.effective_time)


def _text(listed: Listed) -> str:
    book = listed.book
    standing = f"  {listed.standing}" if listed.in_force else ""
    since = _effective(book)
    rows = [("effective", since), ("currency", book.currency)]
    rows += [
        (
            f"{bill.DIMENSIONS[one.dimension][0]} {one.gpu_type}".strip(),
            f"{pricebook.decimal(one.price_nanos)} {UNITS[one.dimension]}",
        )
        for one in book.prices
        if one.dimension in bill.DIMENSIONS
    ]
    rows += [(bill.state(one.state), bill.rule(one)) for one in book.states]
    causes = (workload.Cause.Name(one) for one in book.platform_causes)
    rows.append(("platform's doing", ", ".join(show.enum(one).lower() for one in causes)))
    width = max(len(title) for title, _ in rows)
    lines = (f"  {title:<{width}}  {value}" for title, value in rows if value not in ("", "-"))
    return "\n".join((f"{book.version}{standing}", *map(text.line, lines)))
