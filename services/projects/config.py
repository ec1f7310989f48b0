"""What an operator may set about projects and their people."""

from __future__ import annotations

from dataclasses import dataclass

from chassis import ids
from chassis.config import setting
from chassis.refusals import Invalid, Violation


@dataclass(frozen=True, slots=True)
class Settings:
    """Who is first, where work may run, and who has to have left before a project is deleted."""

    admin: str = setting(
        "FERMION_ADMIN",
        "",
        "Uid of the user who is made platform admin at a start that finds none.",
    )
    vacated_by: tuple[str, ...] = setting(
        "FERMION_PROJECTS_VACATED_BY",
        ("instances",),
        "Services that must have left an archived project before it can be deleted.",
    )
    clusters: tuple[str, ...] = setting(
        "FERMION_PROJECTS_CLUSTERS",
        (),
        "Uids of clusters, enrolled at start if unknown; one that was retired stays so.",
    )

    def __post_init__(self) -> None:
        for uid in self.clusters:
            try:
                # A uid without its prefix, for it is also the shard of a journal.
                ids.parse(f"cluster_{uid}")
            except ValueError as error:
                raise Invalid(
                    "SETTING_INVALID",
                    f"FERMION_PROJECTS_CLUSTERS names {uid!r}, which is no uid of a cluster.",
                    violations=(
                        Violation(
                            "FERMION_PROJECTS_CLUSTERS",
                            "must be uids of 26 lower-case base32 characters each",
                        ),
                    ),
                    next_step="The executor of a cluster knows its uid.",
                    variable="FERMION_PROJECTS_CLUSTERS",
                    value=uid,
                ) from error
