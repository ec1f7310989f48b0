"""Pre-configured kinds of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from fermion.api.instances import v1 as api
from fermion.cli import read, show
from fermion.cli.options import Etag, Options, TemplateName
from fermion.cli.show import Column

app = App(name="templates", help="Pre-configured kinds of instances.")

COLUMNS: tuple[Column[api.Template], ...] = (
    Column("NAME", lambda one: show.short(one.name)),
    Column("KIND", lambda one: show.enum(api.Kind.Name(one.kind)).lower()),
    Column("IMAGE", lambda one: one.spec.image or "-", crop=True),
    Column("GPU", lambda one: show.cores(one.spec.resources.gpu_milli), spare=1),
    Column("CPU", lambda one: show.cores(one.spec.resources.cpu_milli), spare=2),
    Column("MEMORY", lambda one: show.size(one.spec.resources.memory_bytes), spare=3),
    Column("STORAGE", lambda one: show.size(one.spec.resources.storage_bytes), wide=True),
    Column("COMMAND", lambda one: " ".join(one.spec.command) or "-", wide=True),
    Column("OFFERED", lambda one: "no" if one.hidden else "yes", wide=True),
    Column("DISPLAY NAME", lambda one: one.display_name or "-", crop=True, spare=4),
)


@app.command(name="list")
def list_(
    *,
    show_hidden: Annotated[bool, Parameter(help="Also those that are not offered.")] = False,
    options: Options = Options(),
) -> None:
    """List the templates that are offered."""
    with options.client() as client:
        show.many(client.instances.templates(show_hidden), options.output, COLUMNS, "No templates.")


@app.command
def get(name: TemplateName, /, *, options: Options = Options()) -> None:
    """Show one template; `-o yaml` can be given back to `set`."""
    with options.client() as client:
        found = client.instances.template(f"templates/{name.removeprefix('templates/')}")
        show.one(
            found,
            options.output,
            lambda: show.details((one.title.lower(), one.cell(found)) for one in COLUMNS),
        )


@app.command(name="set")
def set_(
    *,
    file: Annotated[
        Path,
        Parameter(
            name=["--file", "-f"],
            help="YAML of a Template, - for stdin.",
            allow_leading_hyphen=True,
        ),
    ],
    etag: Etag = "",
    options: Options = Options(),
) -> None:
    """Replace a template as a whole, or add it."""
    asked = read.message(file, api.Template(), "fermion templates get NAME -o yaml prints one.")
    asked.ClearField("etag")
    asked.ClearField("generation")
    with options.client() as client:
        made = client.instances.set_template(asked, etag)
        show.one(made, options.output, lambda: f"Template {show.short(made.name)} is set.")
