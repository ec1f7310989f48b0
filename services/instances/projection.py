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
from services.instances import aggregate
from services.instances.aggregate import Fact, Instance
from services.instances.spec import PREFIX


def project(record: Recorded) -> Sequence[Write]:
    """Choose the writes of one fact; those about workloads have no row here."""
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
        case api.InstanceStopRequested():
            stopped, deleting = api.STATE_STOPPED, False
            return _write("stop_instance", fact.uid, api.STATE_STOPPING, stopped, deleting, at)
        case api.InstanceRestartRequested():
            running, deleting = api.STATE_RUNNING, False
            return _write("stop_instance", fact.uid, api.STATE_STOPPING, running, deleting, at)
        case api.InstanceDeleteRequested():
            stopped, deleting = api.STATE_STOPPED, True
            return _write("stop_instance", fact.uid, api.STATE_STOPPING, stopped, deleting, at)
        case api.InstanceStopped():
            stopped, reason = api.STATE_STOPPED, None
            return _write("end_instance", fact.uid, stopped, reason, stopped, at)
        case api.InstanceFailed():
            stopped, reason_bytes = api.STATE_STOPPED, _bytes(fact.reason)
            return _write("end_instance", fact.uid, api.STATE_FAILED, reason_bytes, stopped, at)
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


def _json(labels: dict[str, str]) -> str:
    return json.dumps(labels, sort_keys=True)
