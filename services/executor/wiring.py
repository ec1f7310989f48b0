"""Tells the chassis what the executor is made of."""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Callable
from pathlib import Path

from chassis.journal import Book
from chassis.refusals import Invalid, Violation
from chassis.service import Kernel, Loop, Mount, Target, Wired
from fermion.api.executor.v1 import service_pb2_grpc
from fermion.api.workload.v1 import events_pb2
from services.executor import aggregate, gpus, keeping, limits, projection
from services.executor.cluster_local import LocalCluster
from services.executor.config import Settings
from services.executor.consumer import Wants
from services.executor.figures import FIGURES, ClusterFigures
from services.executor.ground import Ground, Pace
from services.executor.reconciler import Reconciler
from services.executor.servicer import RuntimeServicer


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    settings = kernel.settings
    cluster = LocalCluster(ground(settings), tokens(settings.key))
    wants = Wants(cluster.uid)
    reconciler = Reconciler(
        cluster,
        kernel.journal,
        kernel.database,
        kernel.queries,
        kernel.lease("reconciler"),
        kernel.clock,
        settings,
        wants.told,
    )
    servicer = RuntimeServicer(
        cluster, kernel.journal, kernel.database, kernel.queries, kernel.clock
    )
    figures = ClusterFigures(
        cluster.uid, kernel.database, kernel.queries, kernel.clock, lambda: reconciler.seen
    )
    return Wired(
        servicers=(
            Mount(
                "fermion.api.executor.v1.RuntimeService",
                service_pb2_grpc.add_RuntimeServiceServicer_to_server,
                servicer,
            ),
        ),
        consumers=(wants,),
        loops=(Loop("reconciler", reconciler.run), Loop("watching", servicer.watching.run)),
        measure=figures.measure,
    )


def ground(settings: Settings) -> Ground:
    """What this machine has, and holds down."""
    uid, count = shard(settings), settings.simulate_gpus
    return Ground(
        settings.root,
        uid,
        node=socket.gethostname(),
        limits=limits.probe(keeping.group_name(settings.root, uid)),
        gpus=gpus.simulated(count) if count else gpus.found(),
        pace=Pace(log_days=settings.log_days),
    )


def shard(settings: Settings) -> str:
    """The uid of the cluster is the shard of its executor's journal; `Invalid` where there is none."""
    for value, variable in (
        (settings.cluster, "FERMION_EXECUTOR_CLUSTER"),
        (settings.root != Path(), "FERMION_EXECUTOR_ROOT"),
        (settings.key != Path(), "FERMION_EXECUTOR_KEY"),
    ):
        if not value:
            raise Invalid(
                "SETTING_MISSING",
                f"{variable} is not set.",
                violations=(Violation(variable, "must be set for an executor"),),
                next_step="Set it, or run `fermion up`, which brings a local cluster.",
                variable=variable,
            )
    return settings.cluster


def tokens(path: Path) -> Callable[[str], str]:
    """Make the token of a replica from the platform's secret, so that nobody has to keep it."""
    try:
        secret = path.read_text().strip().encode()
    except OSError as error:
        raise Invalid(
            "SETTING_INVALID",
            f"FERMION_EXECUTOR_KEY names {path}, which cannot be read ({error.strerror}).",
            violations=(Violation("FERMION_EXECUTOR_KEY", "must name a file with a secret"),),
            next_step="Name a file that holds a secret, e.g. of 64 random characters.",
            variable="FERMION_EXECUTOR_KEY",
            value=str(path),
        ) from error

    def token_of(replica: str) -> str:
        return hmac.new(secret, replica.encode(), hashlib.sha256).hexdigest()

    return token_of


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR,),
    reads=("scheduler",),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
    shard=shard,
    figures=FIGURES,
)
