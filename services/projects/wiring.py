"""Tells the chassis what the projects service is made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from chassis.command import transact
from chassis.envelope import Meta
from chassis.journal import Book
from chassis.refusals import Exists
from chassis.service import Kernel, Mount, Target, Wired
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

    async def begin_clusters() -> None:
        for uid in kernel.settings.clusters:
            await transact(
                kernel.journal,
                f"cluster/{uid}",
                enrolment.fold,
                partial(enrolment.introduce, uid=uid, at=kernel.clock.now()),
                meta=meta,
            )

    async def begin_people() -> None:
        admin = kernel.settings.admin
        if admin:
            try:
                await transact(
                    kernel.journal,
                    f"user/{admin}",
                    aggregate.fold_user,
                    partial(
                        aggregate.register,
                        uid=admin,
                        user=FIRST_ADMIN,
                        platform_role=api.PLATFORM_ROLE_ADMIN,
                    ),
                    meta=meta,
                )
            except Exists:
                # Another uid has been the first admin; who is one now is decided by admins.
                return

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
                ProjectServicer(kernel),
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
