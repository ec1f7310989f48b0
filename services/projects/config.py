"""What an operator may set about projects and their people."""

from __future__ import annotations

from dataclasses import dataclass

from chassis.config import setting


@dataclass(frozen=True, slots=True)
class Settings:
    """Who is first, and who has to have left before a project is deleted."""

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
