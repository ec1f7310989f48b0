"""Clusters on which work may run."""

from __future__ import annotations

from cyclopts import App

from fermion.api.projects import v1 as api
from fermion.cli import show
from fermion.cli.options import ClusterName, Options
from fermion.cli.show import Column

app = App(name="clusters", help="Clusters on which work may run.")

COLUMNS: tuple[Column[api.Cluster], ...] = (
    Column("CLUSTER", lambda one: show.short(one.name)),
    Column("STATE", lambda one: "retired" if one.retired else "enrolled"),
    Column("ENROLLED", lambda one: show.age(one.enrol_time)),
    Column("RETIRED", lambda one: show.age(one.retire_time)),
    Column("SINCE", lambda one: show.moment(one.enrol_time), wide=True),
    Column("UNTIL", lambda one: show.moment(one.retire_time), wide=True),
)


@app.command(name="list")
def list_(*, options: Options = Options()) -> None:
    """List the clusters that were ever enrolled."""
    with options.client() as client:
        hint = "No cluster is enrolled, so nothing can run."
        show.many(client.clusters.list(), options.output, COLUMNS, hint)


@app.command
def enrol(cluster: ClusterName, /, *, options: Options = Options()) -> None:
    """Let work run on a cluster; its uid is the 26 characters that its executor knows it by."""
    with options.client() as client:
        made = client.clusters.enrol(_id(cluster))
        show.one(made, options.output, lambda: f"Work may run on cluster {_id(cluster)}.")


@app.command
def retire(cluster: ClusterName, /, *, options: Options = Options()) -> None:
    """Give a cluster no more work; what runs there goes on, and is witnessed to its end."""
    with options.client() as client:
        made = client.clusters.retire(_id(cluster))
        show.one(made, options.output, lambda: f"Cluster {_id(cluster)} gets no more work.")


def _id(cluster: str) -> str:
    return cluster.removeprefix("clusters/")
