"""
All rules of a development environment: what it is, what it becomes, what may be asked of it.

An instance is started any number of times; each start is an attempt, and each attempt is one
workload that is declared, and withdrawn when the instance shall stop. Nothing here waits: a stop
asks for the end of the workload, and what comes next (stopped, the next attempt, deleted) is
decided when the scheduler or the executor reports that it has ended. Its files lie in a volume
that is declared with the first attempt, outlives all of them, and goes with the instance.
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
from chassis.workloads import CRASH_LOOP_BACKOFF
from fermion.api.billing import v1 as billing
from fermion.api.instances import v1 as api
from fermion.api.projects import v1 as projects
from fermion.api.scheduler import v1 as scheduler
from fermion.api.workload import v1 as workload
from services.instances import spec as rules
from services.instances import template as templates
from services.instances.config import Settings
from services.instances.runs import Runs, because, failure
from services.instances.spec import PREFIX

SERVICE: Final = "instances"
GRACE: Final = Duration(seconds=30)
# Where a replica finds the files that outlive it.
WORKSPACE: Final = "/workspace"

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
    | api.InstanceAdmitted
    | api.InstancePreparing
    | api.InstanceStarted
    | api.InstanceReady
    | api.InstanceUnready
    | api.InstanceRunEnded
    | api.InstanceBackedOff
    | api.InstanceDraining
    | api.InstanceStopped
    | api.InstanceFailed
    | api.InstanceVolumeEnded
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
    | workload.VolumeDeclared
    | workload.VolumeWithdrawn
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
    # What is known of the attempt's runs.
    runs: Runs = Runs()
    desired: api.State.ValueType = api.STATE_UNSPECIFIED
    # Why it was told to stop last.
    cause: workload.Cause.ValueType = workload.CAUSE_UNSPECIFIED
    # Whether its executor ends it and nobody here asked for that: how it ended decides what it is then.
    draining: bool = False
    pending_restart: bool = False
    # The volume that holds its files; empty where none is declared.
    volume_uid: str = ""
    # Volumes that it has had and that are gone.
    volumes_ended: int = 0
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
                runs=Runs(),
                desired=api.STATE_RUNNING,
                cause=workload.CAUSE_UNSPECIFIED,
                draining=False,
                pending_restart=False,
                volume_uid=fact.volume_uid,
            )
        case api.InstanceQueued():
            return replace(instance, phase=api.PHASE_QUEUED, reason=fact.reason)
        case api.InstanceAdmitted():
            return _in_state(instance, api.STATE_STARTING, at)
        case api.InstancePreparing():
            return replace(
                _in_state(instance, api.STATE_STARTING, at),
                phase=api.PHASE_PREPARING,
                reason=fact.reason,
                runs=instance.runs.waiting(fact.replica_uid, fact.n),
            )
        case api.InstanceStarted():
            state = api.STATE_STARTING if fact.probed else api.STATE_RUNNING
            return replace(
                _in_state(instance, state, at),
                runs=instance.runs.began(
                    fact.replica_uid, fact.run, fact.restarts, dict(fact.addresses)
                ),
            )
        case api.InstanceReady():
            return replace(
                _in_state(instance, api.STATE_RUNNING, at),
                runs=replace(instance.runs, readies=fact.n),
            )
        case api.InstanceUnready():
            return replace(
                _in_state(instance, api.STATE_RUNNING, at),
                phase=api.PHASE_UNREADY,
                reason=fact.reason,
                runs=replace(instance.runs, unreadies=fact.n),
            )
        case api.InstanceRunEnded():
            why = fact.reason if fact.HasField("reason") else None
            return replace(instance, runs=instance.runs.ended(fact.exit_code, fact.signal, why))
        case api.InstanceBackedOff():
            return replace(
                _in_state(instance, api.STATE_STARTING, at),
                phase=api.PHASE_BACKOFF,
                reason=fact.reason,
                runs=instance.runs.waiting(fact.replica_uid, fact.n),
            )
        case api.InstanceDraining():
            return replace(
                _in_state(instance, api.STATE_STOPPING, at),
                reason=fact.reason if fact.HasField("reason") else None,
                desired=api.STATE_STOPPED,
                cause=fact.cause,
                draining=True,
            )
        case api.InstanceStopRequested():
            return replace(
                _in_state(instance, api.STATE_STOPPING, at),
                desired=api.STATE_STOPPED,
                cause=fact.cause,
                draining=False,
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
                reason=fact.reason if fact.HasField("reason") else None,
                runs=instance.runs.closed(),
                desired=api.STATE_STOPPED,
                pending_restart=False,
            )
        case api.InstanceFailed():
            return replace(
                _in_state(instance, api.STATE_FAILED, at),
                reason=fact.reason,
                runs=instance.runs.closed(),
                desired=api.STATE_STOPPED,
                pending_restart=False,
            )
        case api.InstanceVolumeEnded():
            return replace(instance, volume_uid="", volumes_ended=instance.volumes_ended + 1)
        case api.InstanceDeleteRequested():
            # What has ended already stays what it is until it is gone.
            ending = _in_state(instance, api.STATE_STOPPING, at) if instance.lives else instance
            return replace(
                ending,
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
            | api.InstanceAdmitted()
            | api.InstancePreparing()
            | api.InstanceStarted()
            | api.InstanceReady()
            | api.InstanceUnready()
            | api.InstanceRunEnded()
            | api.InstanceBackedOff()
            | api.InstanceDraining()
            | api.InstanceStopped()
            | api.InstanceFailed()
            | api.InstanceVolumeEnded()
            | api.InstanceDeleteRequested()
        ):
            return Place(f"instance/{fact.uid}", fact.project)
        case workload.WorkloadDeclared():
            return Place(f"workload/{fact.workload.uid}", fact.workload.project)
        case workload.WorkloadWithdrawn() | workload.WorkloadRelabelled():
            return Place(f"workload/{fact.uid}", fact.project)
        case workload.VolumeDeclared():
            return Place(f"volume/{fact.volume.uid}", fact.volume.project)
        case workload.VolumeWithdrawn():
            return Place(f"volume/{fact.uid}", fact.project)
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
    """Stop what lives; once nothing runs its volume is withdrawn, and it is gone when that is."""
    instance = _existing(now.instance, etag)
    if instance.deleting:
        return []
    requested = api.InstanceDeleteRequested(uid=instance.uid, project=instance.project)
    if instance.lives:
        return [requested, *_withdrawal(instance, workload.CAUSE_DELETE)]
    return [requested, *_cleared(instance)]


def change(
    now: Situation, *, asked: api.Instance, paths: Sequence[str], policy: Settings, etag: str = ""
) -> list[Fact]:
    """
    Change what a caller set: the named paths, or all that `asked` sets where none is named.

    Labels, display name and description apply at once. A changed spec applies at the next start,
    and what lives shows that it waits for one. The size of a volume that is there never changes.
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
    if instance.volume_uid:
        rules.keep_storage(present.spec, asked.spec, wanted.spec)
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
    The scheduler says that the attempt will never run, or the executor that no cluster honours it.

    After a stop that is its end, and what was asked for meanwhile happens now; otherwise nobody
    asked for it, and the instance has failed.
    """
    instance = now.instance
    if not _is_about(instance, attempt):
        return []
    if instance.state == api.STATE_STOPPING:
        return _over(now, instance.cause)
    return [_failed(instance, reason)]


def admit(now: Situation, *, attempt: int, cluster: str) -> list[Fact]:
    """The scheduler says that it may run; said again with other labels it is nothing new."""
    instance = now.instance
    if not _is_about(instance, attempt) or instance.state != api.STATE_PENDING:
        return []
    return [
        api.InstanceAdmitted(
            uid=instance.uid, project=instance.project, attempt=attempt, cluster=cluster
        )
    ]


def reject(now: Situation, *, workload_uid: str, field: str, reason: workload.Reason) -> list[Fact]:
    """The executor says that its cluster cannot honour a field."""
    instance = now.instance
    if workload_uid != instance.workload_uid:
        return []
    told = workload.Reason()
    told.CopyFrom(reason)
    if field:
        told.arguments.setdefault("field", field)
    return refuse(now, attempt=instance.attempt, reason=told)


def prepare(
    now: Situation, *, workload_uid: str, replica: str, n: int, reason: workload.Reason
) -> list[Fact]:
    """
    The executor says why its replica does not run: not yet, or not again yet.

    Of what is done before the first run only the kind is told: its progress is not said again.
    """
    instance, again = now.instance, reason.code == CRASH_LOOP_BACKOFF
    if not _goes_on(instance, workload_uid) or not instance.runs.waits(replica, n, again):
        return []
    if again:
        return [
            api.InstanceBackedOff(
                uid=instance.uid,
                project=instance.project,
                attempt=instance.attempt,
                reason=reason,
                replica_uid=replica,
                n=n,
            )
        ]
    told = instance.reason if instance.phase == api.PHASE_PREPARING else None
    same = replica == instance.runs.replica
    if same and told is not None and told.code == reason.code:
        return []
    return [
        api.InstancePreparing(
            uid=instance.uid,
            project=instance.project,
            attempt=instance.attempt,
            reason=reason,
            replica_uid=replica,
            n=n,
        )
    ]


def begin(
    now: Situation,
    *,
    workload_uid: str,
    replica: str,
    run: int,
    addresses: Mapping[str, str],
) -> list[Fact]:
    """The executor says that a run began; without a check of its readiness it is ready now."""
    instance, runs, probes = now.instance, now.instance.runs, now.instance.probes
    if not _goes_on(instance, workload_uid) or not runs.begins(replica, run):
        return []
    return [
        api.InstanceStarted(
            uid=instance.uid,
            project=instance.project,
            attempt=instance.attempt,
            run=run,
            addresses=addresses,
            replica_uid=replica,
            probed=probes.HasField("readiness") or probes.HasField("startup"),
            restarts=runs.restarts_with(replica, run),
        )
    ]


def serve(now: Situation, *, workload_uid: str, replica: str, n: int) -> list[Fact]:
    """The executor says that its readiness check passes."""
    instance = now.instance
    if not _runs(instance, workload_uid, replica) or n <= instance.runs.readies:
        return []
    if instance.state == api.STATE_RUNNING and instance.phase != api.PHASE_UNREADY:
        return []
    return [
        api.InstanceReady(uid=instance.uid, project=instance.project, attempt=instance.attempt, n=n)
    ]


def falter(
    now: Situation, *, workload_uid: str, replica: str, n: int, reason: workload.Reason
) -> list[Fact]:
    """The executor says that its readiness check does not pass any more."""
    instance = now.instance
    if not _runs(instance, workload_uid, replica) or n <= instance.runs.unreadies:
        return []
    if instance.state != api.STATE_RUNNING or instance.phase == api.PHASE_UNREADY:
        return []
    return [
        api.InstanceUnready(
            uid=instance.uid,
            project=instance.project,
            attempt=instance.attempt,
            reason=reason,
            n=n,
        )
    ]


def end(
    now: Situation,
    *,
    workload_uid: str,
    replica: str,
    run: int,
    exit_code: int,
    signal: int,
    reason: workload.Reason | None,
) -> list[Fact]:
    """The executor says how a run ended; whether another follows is said apart."""
    instance = now.instance
    if not instance.lives or workload_uid != instance.workload_uid:
        return []
    if not instance.runs.ends(replica, run):
        return []
    return [
        api.InstanceRunEnded(
            uid=instance.uid,
            project=instance.project,
            attempt=instance.attempt,
            run=run,
            exit_code=exit_code,
            signal=signal,
            reason=reason,
        )
    ]


def drain(
    now: Situation, *, workload_uid: str, replica: str, cause: workload.Cause.ValueType
) -> list[Fact]:
    """The executor ends its replica; where a stop was asked for that is no news."""
    instance = now.instance
    if not _goes_on(instance, workload_uid) or replica in instance.runs.past:
        return []
    return [
        api.InstanceDraining(
            uid=instance.uid,
            project=instance.project,
            attempt=instance.attempt,
            cause=cause,
            reason=because(cause),
        )
    ]


def finish(
    now: Situation,
    *,
    attempt: int,
    outcome: workload.Outcome.ValueType,
    cause: workload.Cause.ValueType,
) -> list[Fact]:
    """
    The executor says that no replica lives and none will come.

    Where a stop was asked for, what was asked for meanwhile happens now. Where it was not, the
    instance has failed, unless it ended with success or the platform ended it.
    """
    instance = now.instance
    if not _is_about(instance, attempt):
        return []
    if instance.state == api.STATE_STOPPING and not _drained_only(instance):
        return _over(now, cause or instance.cause)
    why = failure(instance.runs, outcome, cause)
    return [_stopped(instance, cause) if why is None else _failed(instance, why)]


def lose_volume(
    now: Situation, *, volume_uid: str, reason: workload.Reason | None = None
) -> list[Fact]:
    """
    Its volume is gone, or will never be: what is being deleted has nothing left now.

    Where nobody asked for that, the next attempt declares another one.
    """
    instance = now.instance
    if instance.deleted or not instance.uid or volume_uid != instance.volume_uid:
        return []
    if instance.deleting and not instance.lives:
        return [_deleted(instance)]
    return [
        api.InstanceVolumeEnded(
            uid=instance.uid, project=instance.project, volume_uid=volume_uid, reason=reason
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
    volume_uid = _mounted(instance)
    if volume_uid:
        files = workload.Mount.Volume(volume_uid=volume_uid, size_bytes=asked.storage_bytes)
        group.mounts.add(path=WORKSPACE, volume=files)
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
        max_cost=spec.max_cost if spec.HasField("max_cost") else None,
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
            exit_code=instance.runs.exit_code,
            restarts=instance.runs.restarts,
            addresses=instance.runs.addresses,
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


def plan(
    instance: Instance,
    attempt: int,
    price: billing.EstimateCostResponse | None = None,
    queue: scheduler.Explanation | None = None,
) -> api.Plan:
    """Tell what this attempt would mean; what could not be had is named."""
    found = api.Plan(workload=declared(instance, attempt))
    if price is None:
        found.absent.append("price")
    else:
        found.price.currency = price.currency
        found.price.rate_nanos = price.rate_nanos
        found.price.stopped_rate_nanos = price.stopped_rate_nanos
        found.price.worst_nanos = price.worst_nanos
        found.price.price_version = price.price_version
    if queue is None:
        found.absent.append("queue")
    else:
        found.queue.CopyFrom(queue)
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
    project = name.split("/")[1] if name.startswith("projects/") else "PROJECT"
    return Missing(
        "INSTANCE_NOT_FOUND",
        f"There is no {name}.",
        next_step=f"`fermion instances list -p {project}` shows those that are there.",
        instance=name,
    )


def _in_state(instance: Instance, state: api.State.ValueType, at: datetime) -> Instance:
    since = instance.state_time if instance.state == state else at
    return replace(
        instance, state=state, state_time=since, phase=api.PHASE_UNSPECIFIED, reason=None
    )


def _shown_phase(instance: Instance) -> api.Phase.ValueType:
    if instance.deleting:
        return api.PHASE_DELETING
    if instance.state != api.STATE_STOPPING:
        return instance.phase
    if instance.desired == api.STATE_RUNNING:
        return api.PHASE_RESTARTING
    return api.PHASE_UNSPECIFIED


def _is_about(instance: Instance, attempt: int) -> bool:
    return instance.lives and instance.attempt == attempt


def _goes_on(instance: Instance, workload_uid: str) -> bool:
    """Whether a report is about the present attempt, and that is not told to end."""
    stopping = instance.state == api.STATE_STOPPING
    return instance.lives and not stopping and instance.workload_uid == workload_uid


def _runs(instance: Instance, workload_uid: str, replica: str) -> bool:
    runs = instance.runs
    return _goes_on(instance, workload_uid) and runs.open and runs.replica == replica


def _drained_only(instance: Instance) -> bool:
    """Whether it stops because its executor ends it, and nobody has wanted anything else since."""
    wanted = instance.deleting or instance.desired == api.STATE_RUNNING
    return instance.draining and not wanted


def _next_attempt(instance: Instance) -> list[Fact]:
    attempt, volume_uid = instance.attempt + 1, _mounted(instance)
    work = declared(instance, attempt)
    said: list[Fact] = [
        api.InstanceAttemptDeclared(
            uid=instance.uid,
            project=instance.project,
            attempt=attempt,
            workload_uid=work.uid,
            volume_uid=volume_uid,
        )
    ]
    if volume_uid != instance.volume_uid:
        volume = workload.Volume(
            uid=volume_uid,
            owner=work.owner,
            owner_uid=work.owner_uid,
            project=work.project,
            user=work.user,
            kind=work.kind,
            labels=work.labels,
            size_bytes=instance.spec.resources.storage_bytes,
        )
        said.append(workload.VolumeDeclared(volume=volume))
    return [*said, workload.WorkloadDeclared(workload=work)]


def _mounted(instance: Instance) -> str:
    """Tell the volume that the next attempt mounts: the one that is there, or the one to declare."""
    if instance.volume_uid or not instance.spec.resources.storage_bytes:
        return instance.volume_uid
    if not instance.volumes_ended:
        return ids.derived("vol", instance.uid)
    # One that has ended never comes back, so its successor is another one.
    return ids.derived("vol", instance.uid, str(instance.volumes_ended + 1))


def _withdrawal(instance: Instance, cause: workload.Cause.ValueType) -> list[Fact]:
    if instance.state == api.STATE_STOPPING:
        return []
    return [
        workload.WorkloadWithdrawn(
            uid=instance.workload_uid, project=instance.project, cause=cause, grace=GRACE
        )
    ]


def _over(now: Situation, cause: workload.Cause.ValueType) -> list[Fact]:
    """What was told to end has ended: now comes what was asked for."""
    instance = now.instance
    if instance.deleting and instance.volume_uid:
        return [_stopped(instance, workload.CAUSE_DELETE), *_cleared(instance)]
    if instance.deleting:
        return _cleared(instance)
    if instance.desired == api.STATE_RUNNING and not now.project.closed:
        return _next_attempt(instance)
    return [_stopped(instance, cause)]


def _stopped(instance: Instance, cause: workload.Cause.ValueType) -> api.InstanceStopped:
    return api.InstanceStopped(
        uid=instance.uid,
        project=instance.project,
        attempt=instance.attempt,
        cause=cause,
        reason=because(cause),
    )


def _failed(instance: Instance, reason: workload.Reason) -> api.InstanceFailed:
    return api.InstanceFailed(
        uid=instance.uid, project=instance.project, attempt=instance.attempt, reason=reason
    )


def _cleared(instance: Instance) -> list[Fact]:
    """Nothing runs any more: the files go, and the instance with them."""
    if not instance.volume_uid:
        return [_deleted(instance)]
    return [
        workload.VolumeWithdrawn(
            uid=instance.volume_uid, project=instance.project, cause=workload.CAUSE_DELETE
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
            next_step="`fermion templates list` shows those that are offered.",
            template=name,
        )
    return template


def _filled(asked: api.Spec, template: api.TemplateSpec, policy: Settings) -> api.Spec:
    found = rules.faults(asked, template, policy)
    if found:
        raise rules.invalid("instance", found)
    return rules.fill(asked, template)
