"""
All rules of a development environment: what it is, what it becomes, what may be asked of it.

An instance is started any number of times; each start is an attempt, and each attempt is one
workload that is declared, and withdrawn when the instance shall stop. Nothing here waits: a stop
asks for the end of the workload, and what comes next (stopped, the next attempt, deleted) is
decided when the scheduler or the executor reports that it has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias, assert_never, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis import envelope, ids
from chassis.editing import must_be_seen
from chassis.envelope import NO_PROJECT, Recorded
from chassis.journal import Claim, Place, Release
from chassis.refusals import Exists, Missing, Refused, Violation
from fermion.api.instances import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.workload import v1 as workload
from services.instances import spec as rules
from services.instances import template as templates
from services.instances.config import Settings
from services.instances.spec import PREFIX

SERVICE: Final = "instances"
GRACE: Final = Duration(seconds=30)

LIVING: Final = frozenset(
    {api.STATE_PENDING, api.STATE_STARTING, api.STATE_RUNNING, api.STATE_STOPPING}
)

InstanceFact: TypeAlias = (
    api.InstanceCreated
    | api.InstanceChanged
    | api.InstanceStartRequested
    | api.InstanceAttemptDeclared
    | api.InstanceStopRequested
    | api.InstanceRestartRequested
    | api.InstanceQueued
    | api.InstanceStopped
    | api.InstanceFailed
    | api.InstanceDeleteRequested
    | api.InstanceDeleted
)
ProjectFact: TypeAlias = api.ProjectClosed | projects.ProjectVacated
Fact: TypeAlias = (
    InstanceFact
    | ProjectFact
    | api.TemplateSet
    | workload.WorkloadDeclared
    | workload.WorkloadWithdrawn
    | workload.WorkloadRelabelled
)


@dataclass(frozen=True, slots=True)
class Instance:
    """One environment as its facts tell it; without a uid there was never any."""

    uid: str = ""
    project: str = ""
    instance: str = ""
    owner: str = ""
    # Who asked for it to run; its workloads are his.
    user: str = ""
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: api.Spec = field(default_factory=api.Spec)
    probes: workload.Probes = field(default_factory=workload.Probes)
    generation: int = 0
    state: api.State.ValueType = api.STATE_UNSPECIFIED
    phase: api.Phase.ValueType = api.PHASE_UNSPECIFIED
    reason: workload.Reason | None = None
    state_time: datetime | None = None
    attempt: int = 0
    workload_uid: str = ""
    desired: api.State.ValueType = api.STATE_UNSPECIFIED
    # Why it was told to stop last.
    cause: workload.Cause.ValueType = workload.CAUSE_UNSPECIFIED
    pending_restart: bool = False
    deleting: bool = False
    deleted: bool = False
    create_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def lives(self) -> bool:
        """Whether a workload of it is declared and not known to have ended."""
        return self.state in LIVING and not self.deleted

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"projects/{self.project}/instances/{self.instance}"


@dataclass(frozen=True, slots=True)
class Project:
    """What this service knows of a project beside its instances."""

    uid: str = ""
    project: str = ""
    closed: bool = False
    # Position of ProjectArchived in the projects journal.
    through: int = 0
    vacated: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision on one instance rests on."""

    instance: Instance
    project: Project = Project()
    template: api.Template | None = None


def fold(records: Iterable[Recorded]) -> Instance:
    """Fold an `instance/` stream."""
    return envelope.fold(
        lambda instance, fact, at: evolve(instance, cast(InstanceFact, fact), at),
        Instance(),
        records,
    )


def fold_project(records: Iterable[Recorded]) -> Project:
    """Fold a `project/` stream."""
    return envelope.fold(
        lambda project, fact, _: evolve_project(project, cast(ProjectFact, fact)),
        Project(),
        records,
    )


def fold_situation(
    instance: Iterable[Recorded],
    project: Iterable[Recorded],
    template: Sequence[Recorded] = (),
) -> Situation:
    """Fold the streams that a decision on one instance reads."""
    return Situation(fold(instance), fold_project(project), templates.fold(template))


def evolve(instance: Instance, fact: InstanceFact, at: datetime) -> Instance:
    """Follow one fact; the past is not up for debate, so nothing is refused here."""
    instance = replace(instance, update_time=at)
    match fact:
        case api.InstanceCreated():
            return Instance(
                uid=fact.uid,
                project=fact.project,
                instance=fact.instance,
                owner=fact.owner,
                user=fact.owner,
                display_name=fact.display_name,
                description=fact.description,
                labels=dict(fact.labels),
                spec=fact.spec,
                probes=fact.probes,
                generation=1,
                state=api.STATE_STOPPED,
                state_time=at,
                desired=api.STATE_STOPPED,
                create_time=at,
                update_time=at,
            )
        case api.InstanceChanged():
            return replace(
                instance,
                generation=fact.generation,
                spec=fact.spec,
                display_name=fact.display_name,
                description=fact.description,
                labels=dict(fact.labels),
                pending_restart=fact.pending_restart,
            )
        case api.InstanceStartRequested():
            return replace(instance, user=fact.user, desired=api.STATE_RUNNING)
        case api.InstanceAttemptDeclared():
            return replace(
                _in_state(instance, api.STATE_PENDING, at),
                phase=api.PHASE_DECLARED,
                attempt=fact.attempt,
                workload_uid=fact.workload_uid,
                desired=api.STATE_RUNNING,
                cause=workload.CAUSE_UNSPECIFIED,
                pending_restart=False,
            )
        case api.InstanceQueued():
            return replace(instance, phase=api.PHASE_QUEUED, reason=fact.reason)
        case api.InstanceStopRequested():
            return replace(
                _in_state(instance, api.STATE_STOPPING, at),
                desired=api.STATE_STOPPED,
                cause=fact.cause,
            )
        case api.InstanceRestartRequested():
            return replace(
                _in_state(instance, api.STATE_STOPPING, at),
                user=fact.user,
                desired=api.STATE_RUNNING,
                cause=workload.CAUSE_RESTART,
            )
        case api.InstanceStopped():
            return replace(
                _in_state(instance, api.STATE_STOPPED, at),
                desired=api.STATE_STOPPED,
                pending_restart=False,
            )
        case api.InstanceFailed():
            return replace(
                _in_state(instance, api.STATE_FAILED, at),
                reason=fact.reason,
                desired=api.STATE_STOPPED,
                pending_restart=False,
            )
        case api.InstanceDeleteRequested():
            return replace(
                _in_state(instance, api.STATE_STOPPING, at),
                desired=api.STATE_STOPPED,
                cause=workload.CAUSE_DELETE,
                deleting=True,
            )
        case api.InstanceDeleted():
            return replace(instance, deleted=True)
        case _:
            assert_never(fact)


def evolve_project(project: Project, fact: ProjectFact) -> Project:
    """Follow one fact about a project."""
    match fact:
        case api.ProjectClosed():
            return replace(
                project, uid=fact.uid, project=fact.project, closed=True, through=fact.through
            )
        case projects.ProjectVacated():
            return replace(project, vacated=True)
        case _:
            assert_never(fact)


def preview(now: Situation, facts: Sequence[Message], at: datetime) -> Situation:
    """Tell what would follow if these facts were said; nothing here hangs on those of workloads."""
    instance = now.instance
    for fact in facts:
        if isinstance(fact, InstanceFact):
            instance = evolve(instance, fact, at)
    return replace(now, instance=instance)


def place(fact: Message) -> Place:
    """Tell the stream and project of a fact, and the name that it takes or frees."""
    match fact:
        case api.InstanceCreated():
            scope = f"instances/{fact.project}"
            taken = Exists(
                "INSTANCE_EXISTS",
                f"projects/{fact.project}/instances/{fact.instance} exists already.",
                next_step="Choose another name, or delete that one first.",
                instance=f"projects/{fact.project}/instances/{fact.instance}",
            )
            claim = Claim(scope, fact.instance, fact.uid, taken)
            return Place(f"instance/{fact.uid}", fact.project, claims=(claim,))
        case api.InstanceDeleted():
            free = Release(f"instances/{fact.project}", fact.instance)
            return Place(f"instance/{fact.uid}", fact.project, releases=(free,))
        case (
            api.InstanceChanged()
            | api.InstanceStartRequested()
            | api.InstanceAttemptDeclared()
            | api.InstanceStopRequested()
            | api.InstanceRestartRequested()
            | api.InstanceQueued()
            | api.InstanceStopped()
            | api.InstanceFailed()
            | api.InstanceDeleteRequested()
        ):
            return Place(f"instance/{fact.uid}", fact.project)
        case workload.WorkloadDeclared():
            return Place(f"workload/{fact.workload.uid}", fact.workload.project)
        case workload.WorkloadWithdrawn() | workload.WorkloadRelabelled():
            return Place(f"workload/{fact.uid}", fact.project)
        case api.ProjectClosed():
            return Place(f"project/{fact.project}", fact.project)
        case projects.ProjectVacated():
            said = ids.statement(fact.uid, "vacated")
            return Place(f"project/{fact.project}", fact.project, statement=said)
        case api.TemplateSet():
            return Place(f"template/{fact.template.name.removeprefix(PREFIX)}", NO_PROJECT)
        case _:
            raise TypeError(f"{fact.DESCRIPTOR.full_name} is no fact of {SERVICE}")


# What callers ask for.


def create(
    now: Situation,
    *,
    uid: str,
    project: str,
    instance: str,
    owner: str,
    asked: api.Instance,
    policy: Settings,
) -> list[Fact]:
    """Create an instance and declare its first attempt; refused in a closed project."""
    if now.instance.uid:
        return []
    _must_be_open(now.project)
    offered = _offered(now.template, asked.spec)
    created = api.InstanceCreated(
        uid=uid,
        project=project,
        instance=instance,
        owner=owner,
        spec=_filled(asked.spec, offered.spec, policy),
        display_name=asked.display_name,
        description=asked.description,
        labels=asked.labels,
        probes=offered.spec.probes,
    )
    # The time of a creation says nothing about the workload that follows from it.
    after = evolve(Instance(), created, datetime.min.replace(tzinfo=UTC))
    return [created, *start(Situation(after, now.project), user=owner)]


def start(now: Situation, *, user: str, etag: str = "") -> list[Fact]:
    """Ask for a start; a stopping one starts again when it has stopped."""
    instance = _existing(now.instance, etag)
    if instance.desired == api.STATE_RUNNING:
        return []
    _must_be_kept(instance)
    _must_be_open(now.project)
    requested = api.InstanceStartRequested(uid=instance.uid, project=instance.project, user=user)
    if instance.lives:
        return [requested]
    return [requested, *_next_attempt(replace(instance, user=user))]


def stop(
    now: Situation,
    *,
    cause: workload.Cause.ValueType = workload.CAUSE_USER_STOP,
    etag: str = "",
) -> list[Fact]:
    """Ask for a stop; what has stopped, or is on its way, stays as it is."""
    instance = _existing(now.instance, etag)
    if instance.desired != api.STATE_RUNNING:
        return []
    return [
        api.InstanceStopRequested(uid=instance.uid, project=instance.project, cause=cause),
        *_withdrawal(instance, cause),
    ]


def restart(now: Situation, *, user: str, etag: str = "") -> list[Fact]:
    """
    Stop what lives and start it again; what does not live is started.

    An attempt that nobody has taken up yet is as fresh as a restart would make it: it is kept,
    unless the spec has changed since.
    """
    instance = _existing(now.instance, etag)
    _must_be_kept(instance)
    _must_be_open(now.project)
    if not instance.lives:
        return start(now, user=user)
    fresh = instance.phase == api.PHASE_DECLARED and not instance.pending_restart
    restarting = instance.state == api.STATE_STOPPING and instance.desired == api.STATE_RUNNING
    if fresh or restarting:
        return []
    return [
        api.InstanceRestartRequested(uid=instance.uid, project=instance.project, user=user),
        *_withdrawal(instance, workload.CAUSE_RESTART),
    ]


def delete(now: Situation, *, etag: str = "") -> list[Fact]:
    """Delete what does not live at once, and what lives when it has stopped."""
    instance = _existing(now.instance, etag)
    if instance.deleting:
        return []
    requested = api.InstanceDeleteRequested(uid=instance.uid, project=instance.project)
    if instance.lives:
        return [requested, *_withdrawal(instance, workload.CAUSE_DELETE)]
    return [requested, _deleted(instance)]


def change(
    now: Situation, *, asked: api.Instance, paths: Sequence[str], policy: Settings, etag: str = ""
) -> list[Fact]:
    """
    Change what a caller set: the named paths, or all that `asked` sets where none is named.

    Labels, display name and description apply at once. A changed spec applies at the next start,
    and what lives shows that it waits for one.
    """
    instance = _existing(now.instance, etag)
    _must_be_kept(instance)
    filling = api.TemplateSpec() if now.template is None else now.template.spec
    present = api.Instance(
        display_name=instance.display_name,
        description=instance.description,
        labels=instance.labels,
        spec=instance.spec,
    )
    wanted = rules.changed(present, asked, paths, filling, policy)
    if wanted == present:
        return []
    follows_later = wanted.spec != instance.spec
    changed = api.InstanceChanged(
        uid=instance.uid,
        project=instance.project,
        generation=instance.generation + 1,
        spec=wanted.spec,
        display_name=wanted.display_name,
        description=wanted.description,
        labels=wanted.labels,
        pending_restart=instance.lives and (instance.pending_restart or follows_later),
    )
    if instance.lives and dict(wanted.labels) != instance.labels:
        relabelled = workload.WorkloadRelabelled(
            uid=instance.workload_uid, project=instance.project, labels=wanted.labels
        )
        return [changed, relabelled]
    return [changed]


# What other services report. Late, repeated or out of order: nothing follows, and nothing raises.


def queue(now: Situation, *, attempt: int, reason: workload.Reason) -> list[Fact]:
    """The scheduler says why it waits; said again only when the kind of reason changes."""
    instance = now.instance
    if not _is_about(instance, attempt) or instance.state != api.STATE_PENDING:
        return []
    if instance.reason is not None and instance.reason.code == reason.code:
        return []
    return [
        api.InstanceQueued(
            uid=instance.uid, project=instance.project, attempt=attempt, reason=reason
        )
    ]


def refuse(now: Situation, *, attempt: int, reason: workload.Reason) -> list[Fact]:
    """
    The scheduler says that the attempt will never run.

    After a withdrawal that is its end, and what was asked for meanwhile happens now; otherwise
    nobody asked for it, and the instance has failed.
    """
    instance = now.instance
    if not _is_about(instance, attempt):
        return []
    if instance.state != api.STATE_STOPPING:
        return [
            api.InstanceFailed(
                uid=instance.uid, project=instance.project, attempt=attempt, reason=reason
            )
        ]
    if instance.deleting:
        return [_deleted(instance)]
    if instance.desired == api.STATE_RUNNING and not now.project.closed:
        return _next_attempt(instance)
    return [
        api.InstanceStopped(
            uid=instance.uid, project=instance.project, attempt=attempt, cause=instance.cause
        )
    ]


def close(project: Project, *, uid: str, name: str, through: int) -> list[Fact]:
    """The project was archived: creates and starts are refused from now on."""
    if project.closed:
        return []
    return [api.ProjectClosed(uid=uid, project=name, through=through)]


def wind_down(now: Situation) -> list[Fact]:
    """The project was closed: what lives is stopped."""
    return [] if now.instance.deleted or not now.instance.uid else stop(now)


def vacate(project: Project) -> list[Fact]:
    """Nothing of the project lives any more; said once, and only of a closed one."""
    if not project.closed or project.vacated:
        return []
    return [
        projects.ProjectVacated(
            uid=project.uid, project=project.project, through=project.through, service=SERVICE
        )
    ]


def clear_away(now: Situation) -> list[Fact]:
    """The project was deleted: what is left of it goes, too."""
    return [] if now.instance.deleted or not now.instance.uid else delete(now)


# What others see.


def declared(instance: Instance, attempt: int) -> workload.Workload:
    """Write the workload of one attempt; the same instance and attempt always give the same one."""
    spec = instance.spec
    asked = spec.resources
    group = workload.Group(
        replicas=1,
        min_replicas=1,
        resources=workload.Resources(
            gpu_type=asked.gpu_type,
            gpu_milli=asked.gpu_milli,
            cpu_milli=asked.cpu_milli,
            memory_bytes=asked.memory_bytes,
            shm_bytes=asked.shm_bytes,
        ),
        image=workload.Image(repository=spec.image),
        command=spec.command,
        args=spec.args,
        env=spec.env,
        ports=spec.ports,
        probes=instance.probes,
        restart=spec.restart_policy,
        purchase=workload.PURCHASE_ANY,
    )
    return workload.Workload(
        uid=ids.workload(instance.uid, "", attempt),
        owner=instance.name,
        owner_uid=instance.uid,
        attempt=attempt,
        project=instance.project,
        user=instance.user,
        kind=workload.KIND_INSTANCE,
        labels=instance.labels,
        groups=[group],
        ends=workload.Ends(rule=workload.Ends.RULE_NEVER),
        success=workload.Success(rule=workload.Success.RULE_ALL),
        rendezvous=workload.RENDEZVOUS_NONE,
        grace=GRACE,
        max_duration=spec.max_duration if spec.HasField("max_duration") else None,
        isolation=workload.ISOLATION_RESTRICTED,
    )


def view(instance: Instance) -> api.Instance:
    """Show an instance as callers see it."""
    shown = api.Instance(
        name=instance.name,
        uid=instance.uid,
        display_name=instance.display_name,
        description=instance.description,
        labels=instance.labels,
        spec=instance.spec,
        status=api.Status(
            state=instance.state,
            phase=_shown_phase(instance),
            reason=instance.reason,
            attempt=instance.attempt,
            workload_uid=instance.workload_uid,
            desired_state=instance.desired,
            pending_restart=instance.pending_restart,
        ),
        owner=instance.owner,
        etag=str(instance.generation),
        generation=instance.generation,
    )
    for moment, stamp in (
        (instance.state_time, shown.status.state_time),
        (instance.create_time, shown.create_time),
        (instance.update_time, shown.update_time),
    ):
        if moment is not None:
            stamp.FromDatetime(moment)
    return shown


def plan(instance: Instance, attempt: int) -> api.Plan:
    """Tell what this attempt would mean; what nobody can tell yet is named."""
    found = api.Plan(workload=declared(instance, attempt), absent=["price", "queue"])
    if instance.pending_restart:
        found.warnings.append(
            workload.Reason(
                code="PENDING_RESTART",
                message="What runs keeps its old spec until it is started again.",
            )
        )
    return found


def unknown(name: str) -> Missing:
    """Make the refusal of what is asked about an instance that is not there."""
    return Missing(
        "INSTANCE_NOT_FOUND",
        f"There is no {name}.",
        next_step="List the project's instances.",
        instance=name,
    )


def _in_state(instance: Instance, state: api.State.ValueType, at: datetime) -> Instance:
    since = instance.state_time if instance.state == state else at
    return replace(
        instance, state=state, state_time=since, phase=api.PHASE_UNSPECIFIED, reason=None
    )


def _shown_phase(instance: Instance) -> api.Phase.ValueType:
    if instance.state != api.STATE_STOPPING:
        return instance.phase
    if instance.deleting:
        return api.PHASE_DELETING
    if instance.desired == api.STATE_RUNNING:
        return api.PHASE_RESTARTING
    return api.PHASE_UNSPECIFIED


def _is_about(instance: Instance, attempt: int) -> bool:
    return instance.lives and instance.attempt == attempt


def _next_attempt(instance: Instance) -> list[Fact]:
    attempt = instance.attempt + 1
    work = declared(instance, attempt)
    return [
        api.InstanceAttemptDeclared(
            uid=instance.uid, project=instance.project, attempt=attempt, workload_uid=work.uid
        ),
        workload.WorkloadDeclared(workload=work),
    ]


def _withdrawal(instance: Instance, cause: workload.Cause.ValueType) -> list[Fact]:
    if instance.state == api.STATE_STOPPING:
        return []
    return [
        workload.WorkloadWithdrawn(
            uid=instance.workload_uid, project=instance.project, cause=cause, grace=GRACE
        )
    ]


def _deleted(instance: Instance) -> api.InstanceDeleted:
    return api.InstanceDeleted(
        uid=instance.uid, project=instance.project, instance=instance.instance
    )


def _existing(instance: Instance, etag: str) -> Instance:
    if not instance.uid or instance.deleted:
        raise unknown(instance.name if instance.uid else "such an instance")
    must_be_seen(etag, instance.generation)
    return instance


def _must_be_kept(instance: Instance) -> None:
    if instance.deleting:
        raise Refused(
            "INSTANCE_DELETING",
            f"{instance.name} is being deleted.",
            next_step="Create another one when it is gone.",
            instance=instance.name,
        )


def _must_be_open(project: Project) -> None:
    if project.closed:
        raise Refused(
            "PROJECT_ARCHIVED",
            f"projects/{project.project} is archived and takes no new work.",
            next_step="Use another project.",
            project=f"projects/{project.project}",
        )


def _offered(template: api.Template | None, spec: api.Spec) -> api.Template:
    wanted = rules.named(spec)
    if not wanted:
        return api.Template()
    name, path = PREFIX + wanted, "instance.spec.template"
    if template is None:
        fault = Violation(path, f"is {name}, and there is none", "spec.template.exists")
        raise rules.invalid("instance", [fault])
    if template.kind != spec.kind:
        kinds = f"{api.Kind.Name(template.kind)}, and kind is {api.Kind.Name(spec.kind)}"
        fault = Violation(path, f"is {name}, which is for {kinds}", "spec.template.kind")
        raise rules.invalid("instance", [fault])
    if template.hidden:
        raise Refused(
            "TEMPLATE_HIDDEN",
            f"{name} is not offered any more.",
            next_step="List the templates and name one of them.",
            template=name,
        )
    return template


def _filled(asked: api.Spec, template: api.TemplateSpec, policy: Settings) -> api.Spec:
    found = rules.faults(asked, template, policy)
    if found:
        raise rules.invalid("instance", found)
    return rules.fill(asked, template)
