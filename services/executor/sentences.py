"""Reasons that the local cluster gives, from the words that a shim writes down."""

from __future__ import annotations

from collections.abc import Mapping

from fermion.api.workload import v1 as api


def of_waiting(word: str, detail: str, arguments: Mapping[str, str]) -> api.Reason | None:
    """Why main does not run yet, or not again; None where nothing is said."""
    match word:
        case "IMAGE_BUILDING":
            image, progress = arguments["image"], arguments["progress"]
            return api.Reason(
                code="IMAGE_BUILDING",
                arguments={"image": image, "progress": progress},
                message=f"The image {image} is built, once for all: {progress or 'it begins'}.",
            )
        case "IMAGE_BUILD_FAILED":
            image = arguments["image"]
            return api.Reason(
                code="IMAGE_BUILD_FAILED",
                arguments={"image": image, "log": arguments["log"]},
                message=f"The image {image} could not be built, and is tried again; "
                f"{arguments['log']} tells why.",
            )
        case "VOLUME_NOT_BOUND":
            return api.Reason(
                code="VOLUME_NOT_BOUND",
                arguments={"volume": detail},
                message=f"The volume {detail} is not there yet.",
            )
        case "LIMITS_NOT_SET":
            return api.Reason(
                code="LIMITS_NOT_SET",
                arguments={"error": detail},
                message=f"Its control groups cannot be made now: {detail}.",
            )
        case "PORTS_TAKEN":
            return api.Reason(
                code="PORTS_TAKEN",
                arguments={"ports": detail},
                message=f"No port of {detail} is free.",
            )
        case "GPUS_TAKEN":
            return api.Reason(
                code="GPUS_TAKEN",
                arguments={"gpus": detail},
                message=f"It needs {detail} GPUs, and others on this machine hold them.",
            )
        case "RANKS_MISSING":
            return api.Reason(
                code="RANKS_MISSING",
                arguments={"missing": detail},
                message=f"It begins when all ranks are bound; {detail} are not yet.",
            )
        case "DISK_FULL":
            return api.Reason(
                code="DISK_FULL",
                arguments={"error": detail},
                message=f"Its start cannot be recorded, so it waits: {detail}.",
            )
        case "CRASH_LOOP_BACKOFF":
            return api.Reason(
                code="CRASH_LOOP_BACKOFF",
                arguments=arguments,
                message=f"Run {arguments['run']} ended with {arguments['end']}; "
                f"it is run again at {arguments['until']}.",
            )
        case "RESTORED":
            return _restored()
        case _:
            return None


def of_run(word: str, detail: str, limit: int) -> api.Reason | None:
    """Why a run ended, where its code does not say all."""
    match word:
        case "OOM_KILLED":
            return api.Reason(
                code="OOM_KILLED",
                arguments={"memory_bytes": str(limit)},
                message=f"It needed more memory than its {limit} bytes, and was killed.",
            )
        case "LIVENESS_FAILED":
            return api.Reason(
                code="LIVENESS_FAILED", message="Its liveness check failed, so it was ended."
            )
        case "STARTUP_FAILED":
            return api.Reason(
                code="STARTUP_FAILED", message="Its startup check never passed, so it was ended."
            )
        case "START_FAILED":
            return api.Reason(
                code="START_FAILED",
                arguments={"error": detail},
                message=f"It could not be started: {detail}.",
            )
        case "WITNESS_LOST":
            return api.Reason(
                code="WITNESS_LOST",
                message="Its shim was killed, and it with it; it ended at the last proof of life.",
            )
        case "MACHINE_RESTARTED":
            return api.Reason(
                code="MACHINE_RESTARTED",
                message="The machine was restarted; it ended at the last proof of life.",
            )
        case "RESTORED":
            return _restored()
        case _:
            return None


def of_readiness(check: str, found: str) -> api.Reason:
    """Why what runs is not ready."""
    return api.Reason(
        code="CHECK_NOT_PASSED",
        arguments={"check": check, "found": found},
        message=f"Its {check} check has not passed: {found or 'it was not asked yet'}.",
    )


def _restored() -> api.Reason:
    return api.Reason(
        code="RESTORED",
        message="The platform was restored from a backup; it ended at its last proof of life in that.",
    )
