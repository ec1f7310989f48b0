"""Projects."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from fermion.api.projects import v1 as api
from fermion.cli import read, show
from fermion.cli.options import Etag, Options, ProjectName
from fermion.cli.show import Column
from fermion.context import Contexts
from fermion.errors import FailedPrecondition

app = App(name="projects", help="Projects.")

COLUMNS: tuple[Column[api.Project], ...] = (
    Column("NAME", lambda one: show.short(one.name)),
    Column("STATE", lambda one: _state(one)),
    Column("DISPLAY NAME", lambda one: one.display_name or "-", crop=True, spare=1),
    Column("LABELS", lambda one: show.pairs(dict(one.labels)), crop=True, spare=2),
    Column("AGE", lambda one: show.age(one.create_time)),
    Column("LEFT BY", lambda one: ", ".join(one.vacated_by) or "-", wide=True),
    Column("UID", lambda one: one.uid, wide=True),
)


def _state(project: api.Project) -> str:
    return show.enum(api.Project.State.Name(project.state)) if project.state else "GONE"


def _text(project: api.Project) -> str:
    left = f"  left by: {', '.join(project.vacated_by)}" if project.vacated_by else ""
    return f"{show.short(project.name)}  {_state(project)}{left}"


def _details(project: api.Project) -> str:
    return show.details(
        (
            ("uid", project.uid),
            ("display name", project.display_name),
            ("description", project.description),
            ("labels", show.pairs(dict(project.labels))),
            ("created", show.moment(project.create_time)),
            ("changed", show.moment(project.update_time)),
            ("etag", project.etag),
        )
    )


def _id(project: str) -> str:
    return project.removeprefix("projects/")


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
        made = client.projects.create(_id(project), asked)
        show.one(made, options.output, lambda: f"Project {_id(project)} is there.")


@app.command
def get(project: ProjectName, /, *, options: Options = Options()) -> None:
    """Show one project."""
    with options.client() as client:
        found = client.projects.get(_id(project))
        show.one(found, options.output, lambda: f"{_text(found)}\n{_details(found)}")


@app.command(name="list")
def list_(
    *,
    filter: Annotated[str, Parameter(help="e.g. state=ACTIVE AND labels.team=vision")] = "",
    order_by: Annotated[str, Parameter(help="name or create_time, with ' desc' or not.")] = "",
    options: Options = Options(),
) -> None:
    """List the projects that you may see."""
    with options.client() as client:
        found = client.projects.list(filter, order_by)
        hint = (
            "None of your projects is like that."
            if filter
            else "No projects. Make one: fermion projects create NAME"
        )
        show.many(found, options.output, COLUMNS, hint)


@app.command
def watch(*, options: Options = Options()) -> None:
    """Follow changes of the projects that you may see; Ctrl-C detaches."""
    with options.client() as client, show.Board(COLUMNS, options.output) as board:
        for change in client.projects.watch():
            if change.change != api.WatchProjectsResponse.CHANGE_BOOKMARK:
                kind = api.WatchProjectsResponse.Change.Name(change.change)
                gone = change.change == api.WatchProjectsResponse.CHANGE_DELETED
                board.put(show.enum(kind), change.project, gone)


@app.command
def update(
    project: ProjectName,
    /,
    *,
    display_name: Annotated[str | None, Parameter(help="As shown.")] = None,
    description: Annotated[str | None, Parameter(help="Free text.")] = None,
    label: Annotated[tuple[str, ...] | None, Parameter(help="Replaces all labels.")] = None,
    etag: Etag = "",
    options: Options = Options(),
) -> None:
    """Change display name, description or labels."""
    asked, paths = api.Project(name=f"projects/{_id(project)}"), []
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
        made = client.projects.update(asked, paths, etag)
        show.one(made, options.output, lambda: _text(made))


@app.command
def archive(project: ProjectName, /, *, etag: Etag = "", options: Options = Options()) -> None:
    """Refuse new work in a project, and stop what lives there."""
    with options.client() as client:
        made = client.projects.archive(_id(project), etag)
        show.one(made, options.output, lambda: f"Project {_id(project)} is archived; it empties.")


@app.command
def delete(project: ProjectName, /, *, etag: Etag = "", options: Options = Options()) -> None:
    """Delete an archived project in which nothing lives any more."""
    with options.client() as client:
        client.projects.delete(_id(project), etag)
        show.one(
            api.Project(name=f"projects/{_id(project)}"),
            options.output,
            lambda: f"Project {_id(project)} is deleted.",
        )


@app.command
def use(project: ProjectName, /, *, options: Options = Options()) -> None:
    """Make a project the one that commands are about unless they say another."""
    with options.client() as client:
        if not client.context.stored:
            raise FailedPrecondition(
                f"No context is in use, but {client.context.address} by FERMION_ADDRESS.",
                reason="CONTEXT_NOT_STORED",
                next_step="Unset it, or say the project with -p each time.",
            )
        client.projects.get(_id(project))
        Contexts().set(client.context.name, project=_id(project))
        print(f"Using project {_id(project)}.")
