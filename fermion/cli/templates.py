"""Pre-configured kinds of instances."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import yaml
from cyclopts import App, Parameter
from google.protobuf import json_format

from fermion.api.instances import v1 as api
from fermion.cli import read, show
from fermion.cli.near import with_near
from fermion.cli.options import Options

app = App(name="templates", help="Pre-configured kinds of instances.")


def _cells(template: api.Template) -> tuple[str, ...]:
    resources = template.spec.resources
    return (
        show.short(template.name),
        show.enum(api.Kind.Name(template.kind)).lower(),
        template.spec.image,
        f"{resources.gpu_milli / 1000:g}",
        f"{resources.cpu_milli / 1000:g}",
        f"{resources.memory_bytes / 2**30:.3g} GiB",
        template.display_name or "-",
    )


@app.command(name="list")
def list_(
    *,
    show_hidden: Annotated[bool, Parameter(negative="")] = False,
    options: Options = Options(),
) -> None:
    """List the templates that are offered."""
    with options.client() as client:
        show.many(
            client.instances.templates(show_hidden),
            options.output,
            ("NAME", "KIND", "IMAGE", "GPU", "CPU", "MEMORY", "DISPLAY NAME"),
            _cells,
            "No templates.",
        )


@app.command
def get(name: str, /, *, options: Options = Options()) -> None:
    """Show one template; `-o yaml` can be given back to `set`."""
    with options.client() as client:
        found = with_near(
            lambda: client.instances.template(f"templates/{name}"),
            name,
            lambda: client.instances.templates(True),
        )
        show.one(found, options.output, lambda: "  ".join(_cells(found)))


@app.command(name="set")
def set_(
    *,
    file: Annotated[
        Path, Parameter(name=["--file", "-f"], help="YAML of a Template, - for stdin.")
    ],
    options: Options = Options(),
) -> None:
    """Replace a template as a whole, or add it."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        asked = json_format.ParseDict(yaml.safe_load(text) or {}, api.Template())
    except (OSError, yaml.YAMLError, json_format.ParseError, AttributeError) as error:
        raise read.wrong(
            "--file",
            str(file),
            f"is no Template ({error})",
            "`fermion templates get NAME -o yaml` is.",
        ) from error
    asked.etag = ""
    with options.client() as client:
        made = client.instances.set_template(asked)
        show.one(made, options.output, lambda: f"Template {show.short(made.name)} is set.")
