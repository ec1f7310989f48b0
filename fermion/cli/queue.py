"""What waits for admission, why, and for how long."""

from __future__ import annotations

from cyclopts import App

from fermion.api.scheduler import v1 as api
from fermion.cli import show
from fermion.cli.options import InstanceName, Options
from fermion.cli.replicas import owner_of, standing
from fermion.cli.show import Column
from fermion.errors import NotFound

app = App(name="queue", help="What waits for admission, and why.")

COLUMNS: tuple[Column[api.QueuedWorkload], ...] = (
    Column("OWNER", lambda one: one.owner.removeprefix("projects/") or one.workload_uid),
    Column("ATTEMPT", lambda one: str(one.attempt), spare=1),
    Column("WHY", lambda one: show.sentence(one.reason) or "-", crop=True),
    Column("WAITS", lambda one: show.age(one.queue_time)),
    Column("NEEDS", lambda one: show.pairs(dict(one.reason.arguments)), wide=True),
    Column("WORKLOAD", lambda one: one.workload_uid, wide=True),
)


@app.command(name="list")
def list_(*, options: Options = Options()) -> None:
    """List the project's workloads that wait, longest first."""
    with options.client() as client:
        project = options.project_of(client)
        found = client.queue.list(project)
        show.many(found, options.output, COLUMNS, f"Nothing waits in {project}.")


@app.command
def explain(name: InstanceName, /, *, options: Options = Options()) -> None:
    """
    Tell why an instance waits, its place among all that wait, and when it starts at the latest.

    It is as a pass would find it now, not as it was stated last.
    """
    with options.client() as client:
        owner = owner_of(client, options, name)
        try:
            found = client.queue.explain(owner)
        except NotFound as error:
            if error.reason == "NOT_QUEUED" and owner.split("/")[2] == "instances":
                # Where it is not even there, that is the answer.
                error.next_step = standing(client, owner)
            raise
        show.one(found, options.output, lambda: _text(found))


@app.command
def watch(*, options: Options = Options()) -> None:
    """Follow changes of the project's queue; Ctrl-C detaches."""
    # What has left is told by its uid alone; people know it by its owner.
    known: dict[str, api.QueuedWorkload] = {}
    with options.client() as client, show.Board(COLUMNS, options.output) as board:
        for change in client.queue.watch(options.project_of(client)):
            found = change.workload
            if change.change == api.WatchQueueResponse.CHANGE_BOOKMARK:
                continue
            gone = change.change == api.WatchQueueResponse.CHANGE_LEFT
            before = known.pop(found.workload_uid, found)
            if gone and options.output in ("table", "wide"):
                found = before
            if not gone:
                known[found.workload_uid] = found
            board.put(show.enum(api.WatchQueueResponse.Change.Name(change.change)), found, gone)


def _text(found: api.Explanation) -> str:
    queued = found.workload
    latest = "nobody can tell"
    if found.HasField("latest_start_time"):
        latest = f"{show.when(found.latest_start_time)} at the latest, if nothing else comes"
    rows = (
        ("place", f"{found.place} of {found.waiting} that wait"),
        ("starts", latest),
        ("waits for", show.age(queued.queue_time)),
        ("attempt", str(queued.attempt or "")),
        ("labels", show.pairs(dict(queued.labels))),
        ("workload", queued.workload_uid),
    )
    return f"{show.short(queued.owner)}  {show.sentence(queued.reason)}\n{show.details(rows)}"
