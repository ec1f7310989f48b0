"""What happened, who caused it, and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fermion.api.instances import v1 as instances
from fermion.api.journal import v1 as api
from fermion.cli import facts, history, read, show, table, text
from fermion.cli.options import Options, instance_names, note
from fermion.errors import Error, NotFound

if TYPE_CHECKING:
    from fermion.client import Client

app = App(name="events", help="What happened, who caused it, and why.")

FOLLOW_SECONDS = 1.0

Subject = Annotated[
    str,
    Parameter(
        help="An instance, dev-1 or inst_…, also one that is gone; the whole project unless said.",
        completer=instance_names,
    ),
]
Platform = Annotated[
    bool,
    Parameter(
        help="Facts of no project: users, tokens, keys, templates, clusters (their proofs of life with "
        "--journal alone); takes a platform admin."
    ),
]
Journal = Annotated[str, Parameter(help="Only of this journal, e.g. instances/0")]


@app.command(name="list")
def list_(
    name: Subject = "",
    /,
    *,
    as_of: Annotated[
        str, Parameter(help="Only until then (a time, or 10m for ago); shows the state then, too.")
    ] = "",
    all_: Annotated[
        bool, Parameter(name="--all", help="Also of earlier instances of that name.")
    ] = False,
    journal: Journal = "",
    platform: Platform = False,
    options: Options = Options(),
) -> None:
    """
    List an instance's history, or the project's facts of all journals, oldest first.

    Of instances that had the same name one after the other, it is the last one (until then). To its
    history belongs what became of its workloads, replicas and volumes.
    """
    until = read.moment("--as-of", as_of) if as_of else None
    if all_ and not name:
        raise read.unfit("--all", "is about a name, and none was said", "Say a NAME.")
    with options.client() as client:
        project, instance = _about(client, options, name, platform)
        journals = client.journals.names()
        if name:
            uids = _uids(client, options, journals, project, instance, until, all_)
            if journal:
                # One that is not there is refused, as it is where all of the project is listed.
                client.journals.head(journal, project)
            found = [fact for uid in uids for fact in history.of(client, journals, project, uid)]
            found = [fact for fact in found if journal in ("", fact.journal)]
        else:
            found = [
                fact
                for one in ([journal] if journal else journals)
                for fact in history.log(client, one, project)
                if journal or fact.type not in history.PROOFS
            ]
        records = sorted(
            (fact for fact in found if history.not_after(fact, until)), key=facts.in_time
        )
        match options.output:
            case "json":
                print(show.to_json([facts.plain(fact) for fact in records]))
            case "yaml":
                print(show.to_yaml([facts.plain(fact) for fact in records]))
            case "name":
                for fact in records:
                    print(text.line(facts.place(fact)))
            case _:
                names = _names(client, project)
                for fact in records:
                    facts.learn(names, fact)
                wide = options.output == "wide"
                about = wide or all_ or not name
                rows = [facts.cells(fact, names, wide, about) for fact in records]
                show.table(facts.titles(about), rows, options.output)
                if until is not None and name:
                    print(f"\n{_then(client, records, until)}")


@app.command
def watch(
    name: Subject = "",
    /,
    *,
    journal: Journal = "",
    after: Annotated[
        int | None,
        Parameter(
            help="After this position of the project in the journal; 0 for all; else new ones."
        ),
    ] = None,
    platform: Platform = False,
    options: Options = Options(),
) -> None:
    """Follow the project's facts, or an instance's, as they happen; Ctrl-C detaches. None is left out."""
    if after is not None and after < 0:
        raise read.wrong("--after", str(after), "is before the first one", "0 begins there.")
    if after and not journal:
        raise read.unfit(
            "--after", "is a position in one journal, and none was said", "Say --journal, too."
        )
    with options.client() as client:
        project, instance = _about(client, options, name, platform)
        journals = client.journals.names()
        # Before it is known whose they are, so that no new attempt falls between.
        places = {
            one: client.journals.head(one, project) if after is None else after
            for one in ([journal] if journal else journals)
        }
        mine: history.Streams | None = None
        if name:
            uids = _uids(client, options, journals, project, instance, None, False)
            mine = history.Streams(instance, uids)
            for fact in history.of(client, journals, project, uids[-1]):
                mine.holds(fact)
        names = _names(client, project)
        while True:
            for fact in history.newer(client, project, places):
                facts.learn(names, fact)
                if not journal and fact.type in history.PROOFS:
                    continue
                if mine is None or mine.holds(fact):
                    _print(fact, options.output, names, mine is None)
            time.sleep(FOLLOW_SECONDS)


def _about(client: Client, options: Options, name: str, platform: bool) -> tuple[str, str]:
    """The project (empty for facts of none), and the name or uid of the instance where one was said."""
    if platform and (name or options.project):
        raise read.unfit(
            "--platform", "does not go with NAME or --project", "Leave out what is not meant."
        )
    if platform:
        return "", ""
    if not name:
        return options.project_of(client), ""
    project, instance, _ = options.instance_of(client, name)
    return project, instance


def _uids(
    client: Client,
    options: Options,
    journals: Sequence[str],
    project: str,
    instance: str,
    until: datetime | None,
    all_: bool,
) -> Sequence[str]:
    """Uids of the instances that a name stands for; a uid stands for itself."""
    if history.UID.fullmatch(instance):
        return [instance]
    uid, there = history.bearer(client, journals, project, instance, until)
    if not there and options.output in ("table", "wide"):
        gone = "was not there then" if until else "is gone"
        note(f"{instance} {gone}; this is {uid}, the last that had the name.")
    return history.bearers(client, journals, project, instance, until) if all_ else [uid]


def _names(client: Client, project: str) -> dict[str, str]:
    """
    Names by uid, for facts hold uids alone: of people, and of the instances that are there.

    Empty of whom this caller may not see.
    """
    found: dict[str, str] = {}
    try:
        if not project:
            return {one.uid: show.short(one.name) for one in client.users.list()}
        for instance in client.instances.list(project):
            name = show.short(instance.name)
            found |= {instance.uid: name, instance.status.workload_uid: name}
        user = client.users.who_am_i().user
        found[user.uid] = show.short(user.name)
        found |= {one.user_uid: show.short(one.user) for one in client.members.list(project)}
    except Error:
        pass
    found.pop("", None)
    return found


def _print(fact: api.Record, output: str, names: Mapping[str, str], about: bool) -> None:
    match output:
        case "json":
            told = show.to_line(facts.plain(fact))
        case "yaml":
            told = f"---\n{show.to_yaml(facts.plain(fact))}"
        case "name":
            told = text.line(facts.place(fact))
        case "table":
            told = table.line(facts.titles(about), facts.cells(fact, names, False, about))
        case _:
            told = "  ".join(map(text.line, facts.cells(fact, names, True, True)))
    print(told, flush=True)


def _then(client: Client, records: Sequence[api.Record], until: datetime) -> str:
    """The state at a time of the instance that these facts created last."""
    at = until.isoformat(sep=" ", timespec="seconds")
    created = [
        message
        for message in map(facts.decode, records)
        if isinstance(message, instances.InstanceCreated)
    ]
    try:
        last = created[-1]
        found = client.instances.get(f"projects/{last.project}/instances/{last.instance}", until)
    except (IndexError, NotFound):
        return f"At {at} it was not there."
    if found.uid != last.uid:
        return f"At {at} it was not there."
    return f"At {at} it was:\n{show.to_yaml(show.plain(found.status))}"
