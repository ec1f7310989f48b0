"""Turns each fact into the named writes of its rows, and rows back into what callers see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import assert_never, cast

from google.protobuf.message import Message

from chassis.envelope import Recorded
from chassis.journal import Write
from chassis.postgres import Record
from fermion.api.instances import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.instances import aggregate, runs
from services.instances.aggregate import Fact, Instance
from services.instances.runs import Runs
from services.instances.spec import PREFIX


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact; those about workloads and volumes have no row here."""
    fact, at = cast(Fact, record.message), record.record_time
    match fact:
        case api.InstanceCreated():
            return [
                Write(
                    "add_instance",
                    fact.uid,
                    (
                        fact.uid,
                        fact.project,
                        fact.instance,
                        fact.owner,
                        fact.display_name,
                        fact.description,
                        _json(dict(fact.labels)),
                        _bytes(fact.spec),
                        api.STATE_STOPPED,
                        at,
                    ),
                ),
                Write(
                    "add_bearer", f"bearer {fact.uid}", (fact.uid, fact.project, fact.instance, at)
                ),
            ]
        case api.InstanceChanged():
            return _write(
                "change_instance",
                fact.uid,
                fact.generation,
                _bytes(fact.spec),
                fact.display_name,
                fact.description,
                _json(dict(fact.labels)),
                fact.pending_restart,
                at,
            )
        case api.InstanceStartRequested():
            return _write("want_instance", fact.uid, api.STATE_RUNNING, at)
        case api.InstanceAttemptDeclared():
            return _write(
                "declare_attempt",
                fact.uid,
                api.STATE_PENDING,
                api.PHASE_DECLARED,
                fact.attempt,
                fact.workload_uid,
                api.STATE_RUNNING,
                at,
            )
        case api.InstanceQueued():
            return _write("queue_instance", fact.uid, api.PHASE_QUEUED, _bytes(fact.reason), at)
        case api.InstanceAdmitted():
            state, phase, none = api.STATE_STARTING, api.PHASE_UNSPECIFIED, None
            return _write("show_instance", fact.uid, state, phase, none, at)
        case api.InstancePreparing():
            state, phase, why = api.STATE_STARTING, api.PHASE_PREPARING, _bytes(fact.reason)
            return _write("show_instance", fact.uid, state, phase, why, at)
        case api.InstanceStarted():
            state = api.STATE_STARTING if fact.probed else api.STATE_RUNNING
            addresses = _json(dict(fact.addresses))
            return _write("begin_run", fact.uid, state, fact.restarts, addresses, at)
        case api.InstanceReady():
            state, phase, none = api.STATE_RUNNING, api.PHASE_UNSPECIFIED, None
            return _write("show_instance", fact.uid, state, phase, none, at)
        case api.InstanceUnready():
            state, phase, why = api.STATE_RUNNING, api.PHASE_UNREADY, _bytes(fact.reason)
            return _write("show_instance", fact.uid, state, phase, why, at)
        case api.InstanceRunEnded():
            return _write("end_run", fact.uid, runs.shown(fact.exit_code, fact.signal), at)
        case api.InstanceBackedOff():
            state, phase, why = api.STATE_STARTING, api.PHASE_BACKOFF, _bytes(fact.reason)
            return _write("show_instance", fact.uid, state, phase, why, at)
        case api.InstanceDraining():
            state, stopped, given = api.STATE_STOPPING, api.STATE_STOPPED, _given(fact)
            return _write("stop_instance", fact.uid, state, given, stopped, at)
        case api.InstanceStopRequested():
            state, none, stopped = api.STATE_STOPPING, None, api.STATE_STOPPED
            return _write("stop_instance", fact.uid, state, none, stopped, at)
        case api.InstanceRestartRequested():
            state, none, running = api.STATE_STOPPING, None, api.STATE_RUNNING
            return _write("stop_instance", fact.uid, state, none, running, at)
        case api.InstanceDeleteRequested():
            living, state, stopped = sorted(aggregate.LIVING), api.STATE_STOPPING, api.STATE_STOPPED
            return _write("delete_instance", fact.uid, living, state, stopped, at)
        case api.InstanceStopped():
            stopped, given = api.STATE_STOPPED, _given(fact)
            return _write("end_instance", fact.uid, stopped, given, stopped, at)
        case api.InstanceFailed():
            state, why, stopped = api.STATE_FAILED, _bytes(fact.reason), api.STATE_STOPPED
            return _write("end_instance", fact.uid, state, why, stopped, at)
        case api.InstanceVolumeEnded():
            return _write("touch_instance", fact.uid, at)
        case api.InstanceDeleted():
            return _write("remove_instance", fact.uid)
        case api.TemplateSet():
            name = fact.template.name.removeprefix(PREFIX)
            return _write("set_template", name, fact.template.hidden, _bytes(fact.template))
        case api.ProjectClosed():
            return _write("close_project", fact.project)
        case projects.ProjectVacated():
            return _write("vacate_project", fact.project)
        case (
            workload.WorkloadDeclared()
            | workload.WorkloadWithdrawn()
            | workload.WorkloadRelabelled()
            | workload.VolumeDeclared()
            | workload.VolumeWithdrawn()
        ):
            return []
        case _:
            assert_never(fact)


def resource(row: Record) -> api.Instance:
    """Show a row of `instance` as callers see it."""
    return aggregate.view(
        Instance(
            uid=row["uid"],
            project=row["project"],
            instance=row["instance"],
            owner=row["owner"],
            display_name=row["display_name"],
            description=row["description"],
            labels=json.loads(row["labels"]),
            spec=api.Spec.FromString(row["spec"]),
            generation=row["generation"],
            state=row["state"],
            phase=row["phase"],
            reason=None if row["reason"] is None else workload.Reason.FromString(row["reason"]),
            state_time=row["state_time"],
            attempt=row["attempt"],
            workload_uid=row["workload_uid"],
            runs=Runs(
                exit_code=row["exit_code"],
                restarts=row["restarts"],
                addresses=json.loads(row["addresses"]),
            ),
            desired=row["desired"],
            pending_restart=row["pending_restart"],
            deleting=row["deleting"],
            create_time=row["create_time"],
            update_time=row["update_time"],
        )
    )


def template(row: Record) -> api.Template:
    """Show a row of `template` as callers see it."""
    return api.Template.FromString(row["template"])


def _write(statement: str, key: str, *arguments: object) -> list[Write]:
    return [Write(statement, key, (key, *arguments))]


def _bytes(message: Message) -> bytes:
    # Deterministic, because rows that were folded anew are compared byte by byte.
    return message.SerializeToString(deterministic=True)


def _given(fact: api.InstanceDraining | api.InstanceStopped) -> bytes | None:
    return _bytes(fact.reason) if fact.HasField("reason") else None


def _json(words: dict[str, str]) -> str:
    return json.dumps(words, sort_keys=True)
