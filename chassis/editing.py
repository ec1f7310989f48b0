"""What every Update has in common: changing only what was seen, and only what may be changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from chassis.refusals import Conflict, Invalid, Violation


def must_be_seen(etag: str, generation: int) -> None:
    """Refuse to change what the caller has not seen (ETAG_MISMATCH); an empty etag stands for any."""
    if etag and etag != str(generation):
        raise Conflict(
            "ETAG_MISMATCH",
            f"It has changed since: the etag is {generation} now, not {etag}.",
            next_step="Read it again and decide again.",
            etag=str(generation),
        )


def must_be_changeable(paths: Sequence[str], known: Collection[str]) -> None:
    """Refuse an update mask that names what cannot be changed (UPDATE_MASK_INVALID)."""
    unknown = [path for path in paths if path not in known]
    if unknown:
        raise Invalid(
            "UPDATE_MASK_INVALID",
            f"update_mask names {', '.join(unknown)}, which cannot be changed.",
            violations=tuple(
                Violation("update_mask", f"{path} cannot be changed", "update_mask.path")
                for path in unknown
            ),
            next_step=f"Name some of {', '.join(known)}.",
        )
