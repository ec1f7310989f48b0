"""Tells the chassis what the projects service is made of."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from chassis.command import transact
from chassis.envelope import Meta
from chassis.journal import Book
from chassis.refusals import Refused
from chassis.service import Kernel, Loop, Mount, Target, Wired
from fermion.api.projects import v1 as api
from fermion.api.projects.v1 import events_pb2, service_pb2_grpc
from services.projects import aggregate, enrolment, projection
from services.projects.config import Settings
from services.projects.consumer import Departures
from services.projects.servicer import (
    ClusterServicer,
    KeyServicer,
    ProjectServicer,
    QuotaServicer,
    UserServicer,
)

FIRST_ADMIN = "admin"

_log = logging.getLogger(__name__)


def wire(kernel: Kernel[Settings]) -> Wired:
    """Put the rooms together."""
    meta = Meta(actor=f"service:{aggregate.SERVICE}")

    async def begin() -> None:
        await kernel.database.execute(kernel.queries["forget_strays"])
        await begin_keys()
        await begin_clusters()
        await begin_people()

    async def begin_keys() -> None:
        if kernel.signing_key is not None:
            public = kernel.signing_key.public
            await transact(
                kernel.journal,
                aggregate.KEYS,
                aggregate.fold_keys,
                partial(aggregate.add_key, kid=public.kid, public_key=public.raw),
                meta=meta,
            )

    async def begin_people() -> None:
        if kernel.settings.admin and not await kernel.database.fetch(
            kernel.queries["find_admin"], api.PLATFORM_ROLE_ADMIN
        ):
            await first_admin(kernel.settings.admin)

    async def begin_clusters() -> None:
        for uid in kernel.settings.clusters:
            await transact(
                kernel.journal,
                f"cluster/{uid}",
                enrolment.fold,
                partial(enrolment.introduce, uid=uid, at=kernel.clock.now()),
                meta=meta,
            )

    async def first_admin(uid: str) -> None:
        """Give the platform to the one whom the settings name."""
        try:
            await transact(
                kernel.journal,
                f"user/{uid}",
                aggregate.fold_user,
                partial(aggregate.first_admin, uid=uid, user=FIRST_ADMIN),
                meta=meta,
            )
        except Refused as refusal:
            # Everybody else is served as before; only nobody administers.
            _log.error(
                "nobody is a platform admin, and %s cannot be made one: %s "
                "Name the uid of a user who is there in FERMION_ADMIN, and start again.",
                uid,
                refusal,
            )

    of_projects = ProjectServicer(kernel)
    return Wired(
        servicers=(
            Mount(
                "fermion.api.projects.v1.UserService",
                service_pb2_grpc.add_UserServiceServicer_to_server,
                UserServicer(kernel),
            ),
            Mount(
                "fermion.api.projects.v1.ProjectService",
                service_pb2_grpc.add_ProjectServiceServicer_to_server,
                of_projects,
            ),
            Mount(
                "fermion.api.projects.v1.KeyService",
                service_pb2_grpc.add_KeyServiceServicer_to_server,
                KeyServicer(kernel),
            ),
            Mount(
                "fermion.api.projects.v1.QuotaService",
                service_pb2_grpc.add_QuotaServiceServicer_to_server,
                QuotaServicer(kernel),
            ),
            Mount(
                "fermion.api.projects.v1.ClusterService",
                service_pb2_grpc.add_ClusterServiceServicer_to_server,
                ClusterServicer(kernel),
            ),
        ),
        consumers=tuple(Departures(service) for service in kernel.settings.vacated_by),
        begin=begin,
        loops=(Loop("watching", of_projects.watching.run),),
    )


TARGET = Target(
    name=aggregate.SERVICE,
    folder=Path(__file__).parent,
    events=(events_pb2.DESCRIPTOR,),
    reads=("instances",),
    settings=Settings,
    book=Book(aggregate.place, projection.project),
    wire=wire,
)
