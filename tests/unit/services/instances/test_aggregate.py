"""The rules of a development environment."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import attrgetter

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis import ids
from chassis.refusals import Conflict, Invalid, Missing, Refused
from fermion.api.billing import v1 as billing
from fermion.api.instances import v1 as api
from fermion.api.scheduler import v1 as scheduler
from fermion.api.workload import v1 as workload
from services.instances import aggregate
from services.instances import spec as rules
from services.instances import template as templates
from services.instances.aggregate import Instance
from services.instances.config import GB, Settings
from tests.unit.services.history import NOON, names
from tests.unit.services.instances.life import (
    ADA,
    DECISIONS,
    HISTORIES,
    MADE,
    NAME,
    NOTEBOOK,
    POLICY,
    PROJECT,
    RARE,
    REPORTS,
    UID,
    VOLUME,
    Decide,
    Life,
    admitted,
    asked,
    bare,
    change,
    clear_away,
    create,
    delete,
    finished,
    queued,
    refused,
    rejected,
    restart,
    start,
    stop,
    volume_gone,
    wind_down,
)

STATUS = tuple[str, str, str]


def status(life: Life) -> STATUS:
    """Shorten what callers see: state, phase, wanted state."""
    return short(life.shown.status)


def short(found: api.Status) -> STATUS:
    return (
        api.State.Name(found.state).removeprefix("STATE_"),
        api.Phase.Name(found.phase).removeprefix("PHASE_"),
        api.State.Name(found.desired_state).removeprefix("STATE_"),
    )


def test_a_creation_declares_the_first_attempt() -> None:
    facts = create()(Life().now)
    assert names(facts) == [
        "InstanceCreated",
        "InstanceStartRequested",
        "InstanceAttemptDeclared",
        "VolumeDeclared",
        "WorkloadDeclared",
    ]


def test_a_new_instance_waits_for_the_scheduler() -> None:
    assert status(Life().do(create())) == ("PENDING", "DECLARED", "RUNNING")


def test_a_queued_instance_tells_why_it_waits() -> None:
    life = Life().do(create(), queued(1))
    assert status(life) == ("PENDING", "QUEUED", "RUNNING")
    assert life.shown.status.reason.code == "NO_CLUSTER"


def test_the_same_kind_of_reason_is_not_said_again() -> None:
    life = Life().do(create(), queued(1))
    assert queued(1)(life.now) == []
    assert names(queued(1, "QUOTA")(life.now)) == ["InstanceQueued"]


def test_a_stop_withdraws_the_workload_and_waits_for_its_end() -> None:
    life = Life().do(create(), queued(1))
    facts = stop(life.now)
    assert names(facts) == ["InstanceStopRequested", "WorkloadWithdrawn"]
    assert isinstance(facts[1], workload.WorkloadWithdrawn)
    assert facts[1].uid == life.shown.status.workload_uid
    assert facts[1].grace == Duration(seconds=30)
    assert status(life.do(stop)) == ("STOPPING", "UNSPECIFIED", "STOPPED")


def test_a_withdrawn_workload_leaves_a_stopped_instance() -> None:
    life = Life().do(create(), queued(1), stop, refused(1))
    assert status(life) == ("STOPPED", "UNSPECIFIED", "STOPPED")


def test_a_refusal_that_nobody_asked_for_is_a_failure_with_its_reason() -> None:
    life = Life().do(create(), refused(1, "IMPOSSIBLE"))
    assert status(life) == ("FAILED", "UNSPECIFIED", "STOPPED")
    assert life.shown.status.reason.code == "IMPOSSIBLE"


def test_a_failed_instance_can_be_started_again() -> None:
    life = Life().do(create(), refused(1, "IMPOSSIBLE"), start)
    assert status(life) == ("PENDING", "DECLARED", "RUNNING")
    assert life.shown.status.attempt == 2
    assert not life.shown.status.HasField("reason")


def test_a_start_while_it_stops_is_remembered_until_it_has_stopped() -> None:
    life = Life().do(create(), stop, start)
    assert status(life) == ("STOPPING", "RESTARTING", "RUNNING")
    facts = refused(1)(life.now)
    assert names(facts) == ["InstanceAttemptDeclared", "WorkloadDeclared"]


def test_a_restart_withdraws_and_declares_the_next_attempt_at_the_end() -> None:
    life = Life().do(create(), queued(1), restart)
    assert status(life) == ("STOPPING", "RESTARTING", "RUNNING")
    life.do(refused(1))
    assert status(life) == ("PENDING", "DECLARED", "RUNNING")
    assert life.shown.status.workload_uid == ids.workload(UID, "", 2)


def test_a_restart_of_what_has_stopped_is_a_start() -> None:
    life = Life().do(create(), stop, refused(1), restart)
    assert life.shown.status.attempt == 2


def test_a_restart_of_an_attempt_that_nobody_took_up_keeps_it() -> None:
    assert restart(Life().do(create()).now) == []


def test_a_restart_follows_a_changed_spec_also_before_anybody_took_it_up() -> None:
    life = Life().do(create(), change(asked(image="two"), "spec.image"))
    assert names(restart(life.now)) == ["InstanceRestartRequested", "WorkloadWithdrawn"]


def test_a_stop_takes_a_restart_back() -> None:
    life = Life().do(create(), queued(1), restart)
    assert names(stop(life.now)) == ["InstanceStopRequested"]
    assert status(life.do(stop, refused(1))) == ("STOPPED", "UNSPECIFIED", "STOPPED")


def test_a_deletion_of_what_lives_waits_for_its_end() -> None:
    life = Life().do(create(), queued(1))
    assert names(delete(life.now)) == ["InstanceDeleteRequested", "WorkloadWithdrawn"]
    assert status(life.do(delete)) == ("STOPPING", "DELETING", "STOPPED")
    assert names(refused(1)(life.now)) == ["InstanceStopped", "VolumeWithdrawn"]
    assert status(life.do(refused(1))) == ("STOPPED", "DELETING", "STOPPED")
    assert names(volume_gone()(life.now)) == ["InstanceDeleted"]


def test_a_deletion_of_what_has_stopped_withdraws_its_volume_at_once() -> None:
    life = Life().do(create(), stop, refused(1))
    facts = delete(life.now)
    assert names(facts) == ["InstanceDeleteRequested", "VolumeWithdrawn"]
    assert facts[1] == workload.VolumeWithdrawn(
        uid=VOLUME, project=PROJECT, cause=workload.CAUSE_DELETE
    )
    assert status(life.do(delete)) == ("STOPPED", "DELETING", "STOPPED")


def test_a_deletion_of_what_has_failed_keeps_telling_why_it_failed() -> None:
    life = Life().do(create(), refused(1, "IMPOSSIBLE"), delete)
    assert status(life) == ("FAILED", "DELETING", "STOPPED")
    assert life.shown.status.reason.code == "IMPOSSIBLE"


def test_a_deletion_of_what_has_no_volume_is_done_at_once() -> None:
    life = Life().do(bare(), stop)
    assert names(refused(1)(life.now)) == ["InstanceStopped"]
    life.do(refused(1))
    assert names(delete(life.now)) == ["InstanceDeleteRequested", "InstanceDeleted"]


def test_a_deletion_of_what_lives_without_a_volume_is_done_at_its_end() -> None:
    life = Life().do(bare(), delete)
    assert names(refused(1)(life.now)) == ["InstanceDeleted"]


def test_a_deletion_frees_the_name() -> None:
    life = Life().do(create(), stop, refused(1), delete)
    release = aggregate.place(volume_gone()(life.now)[-1]).releases[0]
    claim = aggregate.place(create()(Life().now)[0]).claims[0]
    assert (release.scope, release.name) == (claim.scope, claim.name)


def test_a_deletion_cannot_be_taken_back_by_a_start() -> None:
    life = Life().do(create(), delete)
    with pytest.raises(Refused) as refusal:
        start(life.now)
    assert refusal.value.reason == "INSTANCE_DELETING"


@pytest.mark.parametrize("decide", [start, stop, restart, delete])
def test_nothing_can_be_asked_of_what_is_gone(decide: Decide) -> None:
    life = Life().do(create(), delete, refused(1), volume_gone())
    with pytest.raises(Missing) as refusal:
        decide(life.now)
    assert refusal.value.reason == "INSTANCE_NOT_FOUND"


def test_an_etag_that_was_overtaken_is_a_conflict() -> None:
    life = Life().do(create(), change(asked(image="two"), "spec.image"))
    with pytest.raises(Conflict) as refusal:
        aggregate.stop(life.now, etag="1")
    assert refusal.value.reason == "ETAG_MISMATCH"
    assert aggregate.stop(life.now, etag="2")


def test_a_report_does_not_move_the_etag() -> None:
    life = Life().do(create(), queued(1))
    assert life.shown.etag == "1"


# Specs.


def test_a_template_fills_in_what_the_user_leaves_open() -> None:
    spec = Life().do(create()).shown.spec
    assert spec.template == "templates/notebook"
    assert spec.image == NOTEBOOK.spec.image
    assert spec.resources == NOTEBOOK.spec.resources
    assert list(spec.ports) == list(NOTEBOOK.spec.ports)
    assert spec.restart_policy == NOTEBOOK.spec.restart_policy


def test_what_the_user_says_wins_over_the_template() -> None:
    resources = api.Resources(gpu_milli=1000, gpu_type="A100-80GB", memory_bytes=32 * GB)
    jupyter = workload.Port(name="jupyter", number=9999)
    spec = Life().do(create(asked(image="mine", resources=resources, ports=[jupyter]))).shown.spec
    assert (spec.image, spec.resources.gpu_milli) == ("mine", 1000)
    assert spec.resources.cpu_milli == NOTEBOOK.spec.resources.cpu_milli
    assert [port.number for port in spec.ports] == [9999]


def test_a_command_of_the_user_does_not_get_the_arguments_of_the_template() -> None:
    spec = Life().do(create(asked(command=["python"]))).shown.spec
    assert (list(spec.command), list(spec.args)) == (["python"], [])


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        (api.Resources(gpu_milli=9000), "gpu_milli"),
        (api.Resources(cpu_milli=3999), "cpu_milli"),
        (api.Resources(cpu_milli=128_001), "cpu_milli"),
        (api.Resources(memory_bytes=15 * GB), "memory_bytes"),
        (api.Resources(memory_bytes=2**40 + 1), "memory_bytes"),
        (api.Resources(storage_bytes=49 * GB), "storage_bytes"),
        (api.Resources(storage_bytes=2 * 2**40 + 1), "storage_bytes"),
        (api.Resources(memory_bytes=16 * GB, shm_bytes=17 * GB), "shm_bytes"),
        (api.Resources(gpu_type="A100-80GB"), "gpu_type"),
    ],
)
def test_a_resource_out_of_bounds_is_refused_with_its_path(
    resources: api.Resources, field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        create(asked(resources=resources))(Life().now)
    assert [v.field for v in refusal.value.violations] == [f"instance.spec.resources.{field}"]
    assert str(getattr(resources, field)) in refusal.value.violations[0].description


def test_the_bounds_of_the_guide_are_allowed() -> None:
    least = api.Resources(gpu_milli=0, cpu_milli=4000, memory_bytes=16 * GB, storage_bytes=50 * GB)
    most = api.Resources(
        gpu_milli=8000, cpu_milli=128_000, memory_bytes=2**40, storage_bytes=2 * 2**40
    )
    for resources in (least, most):
        assert Life().do(create(asked(resources=resources))).shown.spec.resources == resources


def test_an_operator_may_lower_the_bounds() -> None:
    policy = Settings(cpu_milli_min=100)
    small = api.Resources(cpu_milli=250)
    facts = aggregate.create(
        Life().now,
        uid=UID,
        project=PROJECT,
        instance=NAME,
        owner=ADA,
        asked=asked(resources=small),
        policy=policy,
    )
    assert names(facts)[0] == "InstanceCreated"


@pytest.mark.parametrize(
    ("ports", "env", "field"),
    [
        ([("a", 1), ("a", 2)], [], "instance.spec.ports[1].name"),
        ([("a", 1), ("b", 1)], [], "instance.spec.ports[1].number"),
        ([("a", 8888)], [], "instance.spec.ports[0].number"),
        ([], ["A", "B", "A"], "instance.spec.env[2].name"),
    ],
)
def test_what_is_named_twice_is_refused(
    ports: list[tuple[str, int]], env: list[str], field: str
) -> None:
    wanted = asked(
        ports=[workload.Port(name=name, number=number) for name, number in ports],
        env=[workload.EnvVar(name=name, value="1") for name in env],
    )
    with pytest.raises(Invalid) as refusal:
        create(wanted)(Life().now)
    assert [v.field for v in refusal.value.violations] == [field]


@pytest.mark.parametrize(
    ("bound", "field"),
    [
        (workload.Money(), "nanos"),
        (workload.Money(currency="USD"), "nanos"),
        (workload.Money(nanos=1, currency="EUR"), "currency"),
    ],
)
def test_a_bound_of_the_cost_is_more_than_nothing_and_in_the_platforms_currency(
    bound: workload.Money, field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        create(asked(max_cost=bound))(Life().now)
    assert [v.field for v in refusal.value.violations] == [f"instance.spec.max_cost.{field}"]


@pytest.mark.parametrize("currency", ["", "USD"])
def test_a_bound_of_the_cost_is_shown_and_declared_as_it_was_asked_for(currency: str) -> None:
    bound = workload.Money(nanos=2_500_000_000, currency=currency)
    life = Life().do(create(asked(max_cost=bound)))
    assert life.shown.spec.max_cost == bound
    assert aggregate.declared(life.now.instance, 1).max_cost == bound


def test_without_a_bound_nothing_is_declared_of_it() -> None:
    life = Life().do(create())
    assert not aggregate.declared(life.now.instance, 1).HasField("max_cost")


def test_a_plan_tells_what_could_be_had_and_names_what_could_not() -> None:
    instance = Life().do(create()).now.instance
    price = billing.EstimateCostResponse(
        currency="USD", rate_nanos=3, stopped_rate_nanos=1, worst_nanos=9, price_version="2026-01"
    )
    queue = scheduler.Explanation(place=2, waiting=3)
    neither, priced, queued = (
        aggregate.plan(instance, 1),
        aggregate.plan(instance, 1, price),
        aggregate.plan(instance, 1, queue=queue),
    )
    assert list(neither.absent) == ["price", "queue"]
    assert not neither.HasField("price")
    assert not neither.HasField("queue")
    assert list(priced.absent) == ["queue"]
    assert priced.price == api.Plan.Price(
        currency="USD", rate_nanos=3, stopped_rate_nanos=1, worst_nanos=9, price_version="2026-01"
    )
    assert list(queued.absent) == ["price"]
    assert queued.queue == queue


def test_a_template_bounds_the_cost_of_who_says_nothing_of_it() -> None:
    own, bound = workload.Money(nanos=1), workload.Money(nanos=5)
    filling = api.TemplateSpec(max_cost=bound)
    assert rules.fill(api.Spec(), filling).max_cost == bound
    assert rules.fill(api.Spec(max_cost=own), filling).max_cost == own


def test_another_bound_of_the_cost_waits_for_the_next_start() -> None:
    life = Life().do(create(), admitted())
    life.do(change(asked(max_cost=workload.Money(nanos=5)), "spec.max_cost"))
    assert life.shown.spec.max_cost.nanos == 5
    assert life.shown.status.pending_restart


def custom(**spec: object) -> api.Instance:
    resources = api.Resources(cpu_milli=4000, memory_bytes=16 * GB, storage_bytes=50 * GB)
    return api.Instance(
        spec=api.Spec(kind=api.KIND_CUSTOM, resources=resources, **spec)  # type: ignore[arg-type]
    )


def test_a_custom_instance_needs_an_image_or_a_command() -> None:
    now = aggregate.Situation(Instance())
    with pytest.raises(Invalid) as refusal:
        create(custom())(now)
    assert [v.field for v in refusal.value.violations] == ["instance.spec.image"]
    assert create(custom(image="busybox"))(now)
    assert create(custom(command=["sh"]))(now)


def test_a_kind_is_needed() -> None:
    with pytest.raises(Invalid) as refusal:
        create(api.Instance())(aggregate.Situation(Instance()))
    assert [v.field for v in refusal.value.violations] == ["instance.spec.kind"]


def test_a_template_of_another_kind_is_refused() -> None:
    wanted = asked()
    wanted.spec.kind = api.KIND_TRAINING
    wanted.spec.template = "templates/notebook"
    with pytest.raises(Invalid) as refusal:
        create(wanted)(Life().now)
    assert refusal.value.violations[0].field == "instance.spec.template"


def test_a_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(Invalid) as refusal:
        create()(aggregate.Situation(Instance()))
    assert refusal.value.violations[0].field == "instance.spec.template"


def test_a_hidden_template_is_not_offered() -> None:
    hidden = api.Template()
    hidden.CopyFrom(NOTEBOOK)
    hidden.hidden = True
    with pytest.raises(Refused) as refusal:
        create()(aggregate.Situation(Instance(), template=hidden))
    assert refusal.value.reason == "TEMPLATE_HIDDEN"


# Changes.


def test_labels_apply_at_once_also_to_the_workload_that_lives() -> None:
    life = Life().do(create())
    facts = change(api.Instance(labels={"team": "speech"}), "labels")(life.now)
    assert names(facts) == ["InstanceChanged", "WorkloadRelabelled"]
    assert isinstance(facts[0], api.InstanceChanged)
    assert not facts[0].pending_restart


def test_labels_of_what_has_stopped_concern_no_workload() -> None:
    life = Life().do(create(), stop, refused(1))
    facts = change(api.Instance(labels={"team": "speech"}), "labels")(life.now)
    assert names(facts) == ["InstanceChanged"]


def test_a_changed_spec_waits_for_the_next_start_of_what_lives() -> None:
    life = Life().do(create(), queued(1), change(asked(image="two"), "spec.image"))
    waits = life.shown.status.pending_restart
    follows = life.do(restart, refused(1)).shown.status.pending_restart
    assert (waits, follows) == (True, False)
    declared = life.history.records[-1].message
    assert isinstance(declared, workload.WorkloadDeclared)
    assert declared.workload.groups[0].image.repository == "two"


def test_an_empty_mask_changes_what_is_set_and_nothing_else() -> None:
    life = Life().do(create())
    wanted = api.Instance(
        description="new",
        spec=api.Spec(kind=api.KIND_NOTEBOOK, resources=api.Resources(cpu_milli=8000)),
    )
    before, after = life.shown, life.do(change(wanted)).shown
    assert (after.description, after.spec.resources.cpu_milli) == ("new", 8000)
    assert after.spec.resources.memory_bytes == before.spec.resources.memory_bytes
    assert (after.display_name, dict(after.labels)) == (before.display_name, dict(before.labels))


def test_a_masked_field_left_empty_is_the_templates_again() -> None:
    life = Life().do(create(asked(image="mine")), change(api.Instance(), "spec.image"))
    assert life.shown.spec.image == NOTEBOOK.spec.image


def test_a_changed_template_reaches_no_instance_by_another_change() -> None:
    life = Life().do(create())
    richer = api.Template()
    richer.CopyFrom(NOTEBOOK)
    richer.spec.ports.add(name="extra", number=7777)
    life.history.say([api.TemplateSet(template=richer)])
    life.do(change(asked(image="two"), "spec.image"))
    assert [port.name for port in life.shown.spec.ports] == ["jupyter"]


def test_labels_can_be_changed_where_the_bounds_moved_since() -> None:
    life = Life().do(create())
    facts = aggregate.change(
        life.now,
        asked=api.Instance(labels={"a": "b"}),
        paths=["labels"],
        policy=Settings(cpu_milli_min=64_000),
    )
    assert names(facts) == ["InstanceChanged", "WorkloadRelabelled"]


@pytest.mark.parametrize("path", ["status", "uid", "spec.nothing", "labels.team", "owner"])
def test_a_path_that_cannot_be_changed_is_refused(path: str) -> None:
    with pytest.raises(Invalid) as refusal:
        change(asked(), path)(Life().do(create()).now)
    assert refusal.value.reason == "UPDATE_MASK_INVALID"
    assert refusal.value.violations[0].field == "update_mask"


def test_the_kind_never_changes() -> None:
    wanted = api.Instance(spec=api.Spec(kind=api.KIND_TRAINING))
    with pytest.raises(Invalid) as refusal:
        change(wanted)(Life().do(create()).now)
    assert refusal.value.violations[0].field == "instance.spec.kind"


def test_a_change_that_changes_nothing_adds_nothing() -> None:
    life = Life().do(create())
    assert change(life.shown)(life.now) == []


# The workload.


def test_the_workload_holds_all_that_was_asked_for() -> None:
    resources = api.Resources(
        gpu_type="A100-80GB",
        gpu_milli=2000,
        cpu_milli=8000,
        memory_bytes=64 * GB,
        storage_bytes=50 * GB,
        shm_bytes=8 * GB,
    )
    wanted = asked(
        image="img",
        command=["run"],
        args=["--now"],
        env=[workload.EnvVar(name="A", value="1")],
        ports=[workload.Port(name="web", number=80)],
        restart_policy=workload.RestartPolicy(mode=workload.RestartPolicy.MODE_ALWAYS),
        max_duration=Duration(seconds=3600),
        resources=resources,
    )
    declared = Life().do(create(wanted)).history.records[-1].message
    assert isinstance(declared, workload.WorkloadDeclared)
    work, group = declared.workload, declared.workload.groups[0]
    assert work.uid == ids.workload(UID, "", 1)
    assert (work.owner, work.owner_uid) == (f"projects/{PROJECT}/instances/{NAME}", UID)
    assert (work.project, work.user, work.attempt) == (PROJECT, ADA, 1)
    assert work.kind == workload.KIND_INSTANCE
    assert dict(work.labels) == {"team": "vision"}
    assert work.ends.rule == workload.Ends.RULE_NEVER
    assert (work.grace, work.max_duration) == (Duration(seconds=30), Duration(seconds=3600))
    assert (group.replicas, group.min_replicas) == (1, 1)
    assert (group.image.repository, list(group.command), list(group.args)) == (
        "img",
        ["run"],
        ["--now"],
    )
    assert [(e.name, e.value) for e in group.env] == [("A", "1")]
    assert [port.name for port in group.ports] == ["jupyter", "web"]
    assert group.probes == NOTEBOOK.spec.probes
    assert group.restart.mode == workload.RestartPolicy.MODE_ALWAYS
    assert (group.resources.gpu_milli, group.resources.shm_bytes) == (2000, 8 * GB)
    (mount,) = group.mounts
    assert mount == workload.Mount(
        path="/workspace",
        volume=workload.Mount.Volume(volume_uid=VOLUME, size_bytes=50 * GB),
    )


def test_a_workload_belongs_to_who_asked_for_its_start() -> None:
    life = Life().do(create(), stop, refused(1), restart)
    declared = life.history.records[-1].message
    assert isinstance(declared, workload.WorkloadDeclared)
    assert declared.workload.user == "user_bob"


# The volume.


def test_the_volume_is_declared_with_the_first_attempt_as_its_owners() -> None:
    declared = create()(Life().now)[-2]
    assert isinstance(declared, workload.VolumeDeclared)
    assert declared.volume == workload.Volume(
        uid=VOLUME,
        owner=f"projects/{PROJECT}/instances/{NAME}",
        owner_uid=UID,
        project=PROJECT,
        user=ADA,
        kind=workload.KIND_INSTANCE,
        labels={"team": "vision"},
        size_bytes=NOTEBOOK.spec.resources.storage_bytes,
    )
    assert aggregate.place(declared).stream == f"volume/{VOLUME}"


def test_files_survive_a_stop_and_a_start() -> None:
    life = Life().do(create(), stop, refused(1))
    facts = start(life.now)
    assert names(facts) == ["InstanceStartRequested", "InstanceAttemptDeclared", "WorkloadDeclared"]
    declared = facts[-1]
    assert isinstance(declared, workload.WorkloadDeclared)
    assert declared.workload.groups[0].mounts[0].volume.volume_uid == VOLUME


def test_an_instance_from_before_there_were_volumes_gets_one_at_its_next_start() -> None:
    life = Life().do(create(), stop, refused(1))
    for record in life.history.records:
        if isinstance(record.message, api.InstanceAttemptDeclared):
            record.message.volume_uid = ""
    assert names(delete(life.now)) == ["InstanceDeleteRequested", "InstanceDeleted"]
    assert names(start(life.now))[-2:] == ["VolumeDeclared", "WorkloadDeclared"]


def test_a_volume_that_is_gone_has_a_successor_at_the_next_start() -> None:
    life = Life().do(create(), admitted(), rejected())
    assert names(volume_gone()(life.now)) == ["InstanceVolumeEnded"]
    life.do(volume_gone(), start)
    assert life.now.instance.volume_uid == ids.derived("vol", UID, "2")
    life.do(delete, refused(2))
    assert volume_gone(1)(life.now) == []
    assert names(volume_gone(2)(life.now)) == ["InstanceDeleted"]


def test_a_volume_that_was_refused_before_the_deletion_is_not_waited_for() -> None:
    life = Life().do(create(), refused(1, "IMPOSSIBLE"), volume_gone())
    assert names(delete(life.now)) == ["InstanceDeleteRequested", "InstanceDeleted"]


def test_a_volume_that_goes_while_the_deletion_waits_for_the_end_is_not_waited_for() -> None:
    life = Life().do(create(), admitted(), delete, volume_gone())
    assert names(finished()(life.now)) == ["InstanceDeleted"]


@pytest.mark.parametrize("size", [50 * GB, 2**40])
def test_the_size_of_a_volume_never_changes(size: int) -> None:
    life = Life().do(create(asked(resources=api.Resources(storage_bytes=60 * GB))))
    wanted = asked(resources=api.Resources(storage_bytes=size))
    with pytest.raises(Invalid) as refusal:
        change(wanted, "spec.resources.storage_bytes")(life.now)
    (fault,) = refusal.value.violations
    assert (fault.field, fault.rule) == (
        "instance.spec.resources.storage_bytes",
        "resources.storage_bytes.fixed",
    )
    assert (str(size) in fault.description, str(60 * GB) in fault.description) == (True, True)


def test_resources_that_name_no_size_keep_the_volumes() -> None:
    life = Life().do(create(asked(resources=api.Resources(storage_bytes=60 * GB))))
    life.do(change(asked(resources=api.Resources(cpu_milli=8000)), "spec.resources"))
    resources = life.shown.spec.resources
    assert (resources.cpu_milli, resources.storage_bytes) == (8000, 60 * GB)


def test_storage_can_be_added_where_there_is_no_volume_yet() -> None:
    life = Life().do(bare())
    wanted = api.Instance(spec=api.Spec(resources=api.Resources(storage_bytes=50 * GB)))
    life.do(change(wanted, "spec.resources.storage_bytes"), stop, refused(1))
    assert "VolumeDeclared" in names(start(life.now))


def test_a_plan_shows_the_volume_that_the_next_attempt_would_mount() -> None:
    life = Life().do(bare())
    assert not aggregate.plan(life.now.instance, 2).workload.groups[0].mounts
    wanted = api.Instance(spec=api.Spec(resources=api.Resources(storage_bytes=50 * GB)))
    after = aggregate.preview(life.now, change(wanted)(life.now), NOON)
    (mount,) = aggregate.plan(after.instance, 2).workload.groups[0].mounts
    assert mount.volume.volume_uid == VOLUME


# Closed projects.


@pytest.mark.parametrize("decide", [start, restart])
def test_a_closed_project_starts_nothing(decide: Decide) -> None:
    life = Life().do(create(), stop, refused(1)).close()
    with pytest.raises(Refused) as refusal:
        decide(life.now)
    assert refusal.value.reason == "PROJECT_ARCHIVED"


def test_a_closed_project_gets_nothing_new() -> None:
    with pytest.raises(Refused) as refusal:
        create()(Life().close().now)
    assert refusal.value.reason == "PROJECT_ARCHIVED"


def test_what_lives_in_a_closed_project_is_stopped() -> None:
    life = Life().do(create(), queued(1)).close()
    assert names(wind_down(life.now)) == ["InstanceStopRequested", "WorkloadWithdrawn"]


def test_a_restart_ends_stopped_where_the_project_was_closed_meanwhile() -> None:
    life = Life().do(create(), queued(1), restart).close()
    assert names(refused(1)(life.now)) == ["InstanceStopped"]


def test_an_open_project_is_never_vacated() -> None:
    assert aggregate.vacate(aggregate.Project()) == []


def test_a_closed_project_is_vacated_once_with_a_fixed_statement() -> None:
    life = Life().close()
    facts = aggregate.vacate(life.now.project)
    assert names(facts) == ["ProjectVacated"]
    assert aggregate.place(facts[0]).statement == ids.statement("proj_acme", "vacated")
    assert aggregate.vacate(life.vacate().now.project) == []


def test_what_is_left_in_a_deleted_project_goes() -> None:
    life = Life().do(create(), stop, refused(1)).close().vacate()
    assert names(clear_away(life.now)) == ["InstanceDeleteRequested", "VolumeWithdrawn"]
    life.do(clear_away)
    assert clear_away(life.now) == []
    assert names(volume_gone()(life.now)) == ["InstanceDeleted"]


def test_a_volume_that_is_left_does_not_live() -> None:
    life = Life().do(create(), delete, refused(1)).close()
    assert not life.now.instance.lives
    assert names(aggregate.vacate(life.now.project)) == ["ProjectVacated"]


# What holds for every history.


def test_the_histories_of_these_tests_reach_every_state() -> None:
    seen: set[STATUS] = set()

    @settings(max_examples=300, database=None, derandomize=True)
    @given(HISTORIES)
    def look(life: Life) -> None:
        instance = Instance()
        # The facts of one decision have one time, and nobody sees between them.
        decisions = groupby(life.history.stream(f"instance/{UID}"), attrgetter("record_time"))
        for at, said in decisions:
            for record in said:
                instance = aggregate.evolve(instance, record.message, at)  # type: ignore[arg-type]
            seen.add(short(aggregate.view(instance).status))

    look()
    assert seen == {
        ("PENDING", "DECLARED", "RUNNING"),
        ("PENDING", "QUEUED", "RUNNING"),
        ("STARTING", "UNSPECIFIED", "RUNNING"),
        ("STARTING", "PREPARING", "RUNNING"),
        ("STARTING", "BACKOFF", "RUNNING"),
        ("RUNNING", "UNSPECIFIED", "RUNNING"),
        ("RUNNING", "UNREADY", "RUNNING"),
        ("STOPPING", "UNSPECIFIED", "STOPPED"),
        ("STOPPING", "RESTARTING", "RUNNING"),
        ("STOPPING", "DELETING", "STOPPED"),
        ("STOPPED", "UNSPECIFIED", "STOPPED"),
        ("STOPPED", "DELETING", "STOPPED"),
        ("FAILED", "UNSPECIFIED", "STOPPED"),
        ("FAILED", "DELETING", "STOPPED"),
    }


@given(HISTORIES, st.one_of(DECISIONS, RARE))
def test_a_decision_repeated_adds_nothing(life: Life, decide: Decide) -> None:
    try:
        life.do(decide)
        again = decide(life.now)
    except Refused:
        return
    assert again == []


@given(HISTORIES, REPORTS)
def test_a_report_never_raises(life: Life, report: Decide) -> None:
    report(life.now)


@given(HISTORIES, MADE)
def test_a_report_about_another_attempt_adds_nothing(
    life: Life, report: Callable[[int], Decide]
) -> None:
    attempt = life.now.instance.attempt
    for other in (attempt - 1, attempt + 1):
        assert report(other)(life.now) == []


@given(HISTORIES)
def test_a_living_instance_has_exactly_one_workload_that_was_not_refused(life: Life) -> None:
    declared = [r for r in life.history.records if r.type.endswith("WorkloadDeclared")]
    withdrawn = [r.stream for r in life.history.records if r.type.endswith("WorkloadWithdrawn")]
    assert len(withdrawn) == len(set(withdrawn))
    assert len(declared) == life.now.instance.attempt
    if life.now.instance.lives:
        last = f"workload/{life.now.instance.workload_uid}"
        assert declared[-1].stream == last
        stopping = life.now.instance.state == api.STATE_STOPPING
        drained = any(
            isinstance(record.message, api.InstanceDraining)
            and record.message.attempt == life.now.instance.attempt
            for record in life.history.records
        )
        assert (last in withdrawn or drained) is stopping


@given(HISTORIES)
def test_a_volume_outlives_every_attempt_and_goes_before_its_instance(life: Life) -> None:
    there, withdrawn = "", False
    for place, record in enumerate(life.history.records):
        match record.message:
            case workload.VolumeDeclared(volume=volume):
                assert there == ""
                there, withdrawn = volume.uid, False
            case workload.WorkloadDeclared(workload=declared):
                (mount,) = declared.groups[0].mounts
                assert mount.volume.volume_uid == there
            case workload.VolumeWithdrawn() as said:
                before = Life()
                before.history.records = life.history.records[:place]
                assert (said.uid, before.now.instance.lives) == (there, False)
                assert not withdrawn
                withdrawn = True
            case api.InstanceVolumeEnded() as said:
                assert said.volume_uid == there
                there = ""
            case api.InstanceDeleted():
                assert withdrawn or there == ""


@given(HISTORIES, st.randoms())
def test_evolve_takes_any_facts_in_any_order(life: Life, random: object) -> None:
    facts: list[Message] = [
        record.message
        for record in life.history.records
        if record.stream.startswith("instance/") and record.message is not None
    ]
    random.shuffle(facts)  # type: ignore[attr-defined]
    instance = Instance()
    for fact in facts:
        instance = aggregate.evolve(instance, fact, NOON)  # type: ignore[arg-type]
    assert aggregate.view(instance).etag == str(instance.generation)


def test_bounds_that_allow_nothing_are_refused_at_the_start() -> None:
    with pytest.raises(Invalid) as refusal:
        Settings(cpu_milli_min=9000, cpu_milli_max=8000)
    assert refusal.value.arguments["variable"] == "FERMION_INSTANCES_CPU_MIN"


def test_a_currency_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(Invalid) as refusal:
        Settings(currency="dollars")
    assert refusal.value.arguments["variable"] == "FERMION_CURRENCY"


def test_the_policy_of_these_tests_is_the_guides() -> None:
    assert (POLICY.cpu_milli_min, POLICY.gpu_milli_max) == (4000, 8000)


# Templates.


def test_a_template_bounds_no_cost_by_nothing() -> None:
    broken = api.Template()
    broken.CopyFrom(NOTEBOOK)
    broken.spec.max_cost.currency = "USD"
    with pytest.raises(Invalid) as refusal:
        templates.change(None, asked=broken, policy=POLICY, allow_missing=True)
    assert [v.field for v in refusal.value.violations] == ["template.spec.max_cost.nanos"]


def test_a_template_is_added_only_where_that_is_allowed() -> None:
    with pytest.raises(Missing):
        templates.change(None, asked=NOTEBOOK, policy=POLICY, allow_missing=False)
    (added,) = templates.change(None, asked=NOTEBOOK, policy=POLICY, allow_missing=True)
    assert (added.template.generation, added.template.etag) == (1, "1")


def test_a_template_that_says_the_same_is_not_said_again() -> None:
    (added,) = templates.change(None, asked=NOTEBOOK, policy=POLICY, allow_missing=True)
    again = templates.change(added.template, asked=NOTEBOOK, policy=POLICY, allow_missing=False)
    assert again == []


def test_a_changed_template_has_the_next_generation() -> None:
    (added,) = templates.change(None, asked=NOTEBOOK, policy=POLICY, allow_missing=True)
    wanted = api.Template()
    wanted.CopyFrom(NOTEBOOK)
    wanted.hidden = True
    (changed,) = templates.change(added.template, asked=wanted, policy=POLICY, allow_missing=False)
    assert changed.template.etag == "2"
    with pytest.raises(Conflict):
        templates.change(
            changed.template, asked=NOTEBOOK, policy=POLICY, allow_missing=False, etag="1"
        )


def test_a_template_may_leave_open_what_it_must_not_exceed() -> None:
    wanted = api.Template(name="templates/x", kind=api.KIND_CUSTOM)
    assert templates.change(None, asked=wanted, policy=POLICY, allow_missing=True)
    wanted.spec.resources.cpu_milli = 1
    with pytest.raises(Invalid) as refusal:
        templates.change(None, asked=wanted, policy=POLICY, allow_missing=True)
    assert refusal.value.violations[0].field == "template.spec.resources.cpu_milli"


def test_a_probe_asks_a_port_that_is_there() -> None:
    wanted = api.Template(name="templates/x", kind=api.KIND_CUSTOM)
    wanted.spec.probes.readiness.port = "web"
    with pytest.raises(Invalid) as refusal:
        templates.change(None, asked=wanted, policy=POLICY, allow_missing=True)
    assert refusal.value.violations[0].field == "template.spec.probes.readiness.port"


def test_the_first_templates_are_within_the_bounds_and_stated_once() -> None:
    for template in templates.first(POLICY):
        (offered,) = templates.offer(None, template=template)
        assert templates.offer(offered.template, template=template) == []
        change = templates.change(None, asked=template, policy=POLICY, allow_missing=True)
        assert change == [offered]


@pytest.mark.parametrize("kind", [api.KIND_TRAINING, api.KIND_INFERENCE, api.KIND_NOTEBOOK])
def test_each_pre_configured_kind_needs_nothing_but_its_kind(kind: api.Kind.ValueType) -> None:
    template = next(t for t in templates.first(POLICY) if t.kind == kind)
    wanted = api.Instance(spec=api.Spec(kind=kind))
    assert create(wanted)(aggregate.Situation(Instance(), template=template))
