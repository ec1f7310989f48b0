"""Projects."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from fermion.api.projects import v1 as api
from fermion.cli import read, show
from fermion.cli.near import with_near
from fermion.cli.options import Options
from fermion.context import Contexts

app = App(name="projects", help="Projects.")
COLUMNS = ("NAME", "STATE", "DISPLAY NAME", "LABELS", "AGE")


def _cells(project: api.Project) -> tuple[str, ...]:
    return (
        show.short(project.name),
        show.enum(api.Project.State.Name(project.state)),
        project.display_name or "-",
        show.pairs(dict(project.labels)),
        show.age(project.create_time),
    )


def _text(project: api.Project) -> str:
    name, state = show.short(project.name), show.enum(api.Project.State.Name(project.state))
    left = f"  left by: {', '.join(project.vacated_by)}" if project.vacated_by else ""
    return f"{name}  {state}  {project.display_name}{left}"


@app.command
def create(
    project: str,
    /,
    *,
    display_name: Annotated[str, Parameter(help="As shown.")] = "",
    description: Annotated[str, Parameter(help="Free text.")] = "",
    label: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, more than once.")] = (),
    options: Options = Options(),
) -> None:
    """Create a project; you become its admin."""
    labels = dict(read.pair("--label", text) for text in label)
    with options.client() as client:
        asked = api.Project(display_name=display_name, description=description, labels=labels)
        made = client.projects.create(project, asked)
        show.one(made, options.output, lambda: f"Project {project} is there.")


@app.command
def get(project: str, /, *, options: Options = Options()) -> None:
    """Show one project."""
    with options.client() as client:
        found = with_near(
            lambda: client.projects.get(project), project, lambda: client.projects.list()
        )
        show.one(found, options.output, lambda: _text(found))


@app.command(name="list")
def list_(
    *,
    filter: Annotated[str, Parameter(help="e.g. state=ACTIVE AND labels.team=vision")] = "",
    order_by: Annotated[str, Parameter(help="name or create_time, with ' desc' or not.")] = "",
    options: Options = Options(),
) -> None:
    """List the projects that you may see."""
    with options.client() as client:
        show.many(
            client.projects.list(filter, order_by),
            options.output,
            COLUMNS,
            _cells,
            "No projects. Make one: fermion projects create NAME",
        )


@app.command
def watch(*, options: Options = Options()) -> None:
    """Follow changes of the projects that you may see; Ctrl-C detaches."""
    with options.client() as client:
        for change in client.projects.watch():
            if change.change != api.WatchProjectsResponse.CHANGE_BOOKMARK:
                kind = show.enum(api.WatchProjectsResponse.Change.Name(change.change))
                show.line(change.project, options.output, f"{kind:<8} {_text(change.project)}")


@app.command
def update(
    project: str,
    /,
    *,
    display_name: str | None = None,
    description: str | None = None,
    label: Annotated[tuple[str, ...] | None, Parameter(help="Replaces all labels.")] = None,
    options: Options = Options(),
) -> None:
    """Change display name, description or labels."""
    asked, paths = api.Project(name=f"projects/{project}"), []
    if display_name is not None:
        asked.display_name = display_name
        paths.append("display_name")
    if description is not None:
        asked.description = description
        paths.append("description")
    if label is not None:
        asked.labels.update(dict(read.pair("--label", text) for text in label))
        paths.append("labels")
    if not paths:
        raise read.wrong(
            "update", project, "names nothing to change", "Say --display-name or --label."
        )
    with options.client() as client:
        made = client.projects.update(asked, paths)
        show.one(made, options.output, lambda: _text(made))


@app.command
def archive(project: str, /, *, options: Options = Options()) -> None:
    """Refuse new work in a project, and stop what lives there."""
    with options.client() as client:
        made = client.projects.archive(project)
        show.one(made, options.output, lambda: f"Project {project} is archived; what lives stops.")


@app.command
def delete(project: str, /, *, options: Options = Options()) -> None:
    """Delete an archived project in which nothing lives any more."""
    with options.client() as client:
        client.projects.delete(project)
        print(f"Project {project} is deleted.")


@app.command
def use(project: str, /, *, options: Options = Options()) -> None:
    """Make a project the one that commands are about unless they say another."""
    with options.client() as client:
        with_near(lambda: client.projects.get(project), project, lambda: client.projects.list())
        Contexts().set(client.context.name, project=project)
        print(f"Using project {project}.")
