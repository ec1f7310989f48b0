"""One instance's life as tests tell it: decisions by name, each on what was said before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from google.protobuf.duration_pb2 import Duration
from hypothesis import strategies as st

from chassis import ids
from chassis.refusals import Refused
from fermion.api.instances import v1 as api
from fermion.api.workload import v1 as workload
from services.instances import aggregate
from services.instances import template as templates
from services.instances.aggregate import Fact, Situation
from services.instances.config import GB, Settings
from tests.unit.services.history import History

POLICY = Settings()
UID = ids.derived("inst", "test")
PROJECT = "acme"
NAME = "dev-1"
ADA = "user_ada"
NOTEBOOK = next(t for t in templates.first(POLICY) if t.kind == api.KIND_NOTEBOOK)
VOLUME = ids.derived("vol", UID)
REPLICA = "rep_first"
OTHER_REPLICA = "rep_second"

Decide = Callable[[Situation], Sequence[Fact]]


def asked(**changes: object) -> api.Instance:
    """Write what a caller asks for: a notebook, and what the test adds to its spec."""
    return api.Instance(
        display_name="Ada's",
        labels={"team": "vision"},
        spec=api.Spec(kind=api.KIND_NOTEBOOK, **changes),  # type: ignore[arg-type]
    )


def create(wanted: api.Instance | None = None) -> Decide:
    """Create the instance of these tests."""
    return partial(
        aggregate.create,
        uid=UID,
        project=PROJECT,
        instance=NAME,
        owner=ADA,
        asked=wanted or asked(),
        policy=POLICY,
    )


def bare() -> Decide:
    """Create it without storage, as an operator may allow."""
    resources = api.Resources(cpu_milli=4000, memory_bytes=16 * GB)
    return partial(
        aggregate.create,
        uid=UID,
        project=PROJECT,
        instance=NAME,
        owner=ADA,
        asked=api.Instance(
            spec=api.Spec(kind=api.KIND_CUSTOM, command=["sh"], resources=resources)
        ),
        policy=Settings(storage_bytes_min=0),
    )


def change(wanted: api.Instance, *paths: str) -> Decide:
    """Change the named paths."""
    return partial(aggregate.change, asked=wanted, paths=paths, policy=POLICY)


def queued(attempt: int, code: str = "NO_CLUSTER") -> Decide:
    """Report why an attempt waits."""
    return partial(aggregate.queue, attempt=attempt, reason=workload.Reason(code=code))


def refused(attempt: int, code: str = "WITHDRAWN") -> Decide:
    """Report that an attempt will never run."""
    return partial(aggregate.refuse, attempt=attempt, reason=workload.Reason(code=code))


def admitted(attempt: int = 1) -> Decide:
    """Report that an attempt may run."""
    return partial(aggregate.admit, attempt=attempt, cluster="one")


def pending(
    code: str = "PREPARING", n: int = 1, attempt: int = 1, replica: str = REPLICA
) -> Decide:
    """Report why a replica does not run."""
    return partial(
        aggregate.prepare,
        workload_uid=ids.workload(UID, "", attempt),
        replica=replica,
        n=n,
        reason=workload.Reason(code=code),
    )


def started(
    run: int = 0,
    attempt: int = 1,
    replica: str = REPLICA,
    addresses: Mapping[str, str] | None = None,
) -> Decide:
    """Report that a run began."""
    return partial(
        aggregate.begin,
        workload_uid=ids.workload(UID, "", attempt),
        replica=replica,
        run=run,
        addresses={"jupyter": f"127.0.0.1:{20000 + run}"} if addresses is None else addresses,
    )


def ready(n: int = 1, attempt: int = 1, replica: str = REPLICA) -> Decide:
    """Report that a readiness check passes."""
    return partial(
        aggregate.serve, workload_uid=ids.workload(UID, "", attempt), replica=replica, n=n
    )


def unready(n: int = 1, attempt: int = 1, replica: str = REPLICA) -> Decide:
    """Report that a readiness check does not pass."""
    return partial(
        aggregate.falter,
        workload_uid=ids.workload(UID, "", attempt),
        replica=replica,
        n=n,
        reason=workload.Reason(code="PROBE_FAILED"),
    )


def ended(
    run: int = 0,
    exit_code: int = 1,
    signal: int = 0,
    why: str = "",
    attempt: int = 1,
    replica: str = REPLICA,
) -> Decide:
    """Report that a run ended."""
    return partial(
        aggregate.end,
        workload_uid=ids.workload(UID, "", attempt),
        replica=replica,
        run=run,
        exit_code=exit_code,
        signal=signal,
        reason=workload.Reason(code=why) if why else None,
    )


def draining(
    cause: workload.Cause.ValueType = workload.CAUSE_MAX_DURATION,
    attempt: int = 1,
    replica: str = REPLICA,
) -> Decide:
    """Report that a replica is being ended."""
    return partial(
        aggregate.drain,
        workload_uid=ids.workload(UID, "", attempt),
        replica=replica,
        cause=cause,
    )


def rejected(code: str = "IMAGE_NOT_HONOURED", attempt: int = 1) -> Decide:
    """Report that a cluster cannot honour a field."""
    return partial(
        aggregate.reject,
        workload_uid=ids.workload(UID, "", attempt),
        field="groups[0].image",
        reason=workload.Reason(code=code),
    )


def finished(
    outcome: workload.Outcome.ValueType = workload.OUTCOME_STOPPED,
    cause: workload.Cause.ValueType = workload.CAUSE_UNSPECIFIED,
    attempt: int = 1,
) -> Decide:
    """Report that nothing of an attempt runs or will."""
    return partial(aggregate.finish, attempt=attempt, outcome=outcome, cause=cause)


def volume_gone(number: int = 1) -> Decide:
    """Report that the first, second, … volume is gone."""
    uid = VOLUME if number == 1 else ids.derived("vol", UID, str(number))
    return partial(aggregate.lose_volume, volume_uid=uid)


start: Decide = partial(aggregate.start, user=ADA)
stop: Decide = aggregate.stop
restart: Decide = partial(aggregate.restart, user="user_bob")
delete: Decide = aggregate.delete
wind_down: Decide = aggregate.wind_down
clear_away: Decide = aggregate.clear_away


class Life:
    """The instance, its project and its template, as far as was said."""

    def __init__(self) -> None:
        self.history = History("instances/0", aggregate.place)
        self.history.say(templates.offer(None, template=NOTEBOOK))

    @property
    def now(self) -> Situation:
        """Fold what a decision would read."""
        return aggregate.fold_situation(
            self.history.stream(f"instance/{UID}"),
            self.history.stream(f"project/{PROJECT}"),
            self.history.stream("template/notebook"),
        )

    @property
    def shown(self) -> api.Instance:
        """See it as callers do."""
        return aggregate.view(self.now.instance)

    def do(self, *decisions: Decide) -> Life:
        """Take decisions one after another; what they say is recorded."""
        for decide in decisions:
            self.history.say(decide(self.now))
        return self

    def close(self) -> Life:
        """Hear that the project was archived."""
        project = self.now.project
        self.history.say(aggregate.close(project, uid="proj_acme", name=PROJECT, through=7))
        return self

    def vacate(self) -> Life:
        """Find that nothing lives in the project."""
        self.history.say(aggregate.vacate(self.now.project))
        return self


def reported(report: Callable[[int], Decide], offset: int = 0) -> Decide:
    """Report about the attempt that is present when it is made, or one that is so many away."""
    made: list[Decide] = []

    def about(now: Situation) -> Sequence[Fact]:
        # Made again it is the same report, whatever the present attempt is by then.
        if not made:
            made.append(report(now.instance.attempt + offset))
        return made[0](now)

    return about


CODES = st.sampled_from(["NO_CLUSTER", "QUOTA", "WITHDRAWN", "IMPOSSIBLE"])
REPLICAS = st.sampled_from([REPLICA, REPLICA, REPLICA, OTHER_REPLICA])
RUNS = st.sampled_from([0, 0, 1, 2])
NS = st.integers(1, 3)
CAUSES = st.sampled_from(workload.Cause.values())
OUTCOMES = st.sampled_from(workload.Outcome.values())
# Reports as functions of the attempt that they are about.
MADE: st.SearchStrategy[Callable[[int], Decide]] = st.one_of(
    st.builds(lambda code: partial(queued, code=code), CODES),
    st.builds(lambda code: partial(refused, code=code), CODES),
    st.just(admitted),
    st.builds(
        lambda code, n, replica: lambda attempt: pending(code, n, attempt, replica),
        st.sampled_from(["PREPARING", "CRASH_LOOP_BACKOFF", "VOLUME"]),
        NS,
        REPLICAS,
    ),
    st.builds(lambda run, replica: lambda attempt: started(run, attempt, replica), RUNS, REPLICAS),
    st.builds(lambda n, replica: lambda attempt: ready(n, attempt, replica), NS, REPLICAS),
    st.builds(lambda n, replica: lambda attempt: unready(n, attempt, replica), NS, REPLICAS),
    st.builds(
        lambda run, replica, code: (
            lambda attempt: ended(run, code, attempt=attempt, replica=replica)
        ),
        RUNS,
        REPLICAS,
        st.sampled_from([0, 1]),
    ),
    st.builds(lambda cause: lambda attempt: draining(cause, attempt), CAUSES),
    st.just(lambda attempt: rejected(attempt=attempt)),
    st.builds(
        lambda outcome, cause: lambda attempt: finished(outcome, cause, attempt), OUTCOMES, CAUSES
    ),
)
REPORTS: st.SearchStrategy[Decide] = (
    st.builds(reported, MADE, st.sampled_from([0, 0, 0, 0, -1, 1]))
    | st.just(wind_down)
    | st.sampled_from([volume_gone(1), volume_gone(2)])
)
CHANGES: st.SearchStrategy[Decide] = st.sampled_from(
    [
        change(api.Instance(labels={"team": "speech"}), "labels"),
        change(api.Instance(labels={}), "labels"),
        change(api.Instance(display_name="Bob's"), "display_name"),
        change(asked(image="jupyterlab:2"), "spec.image"),
        change(asked(max_duration=Duration(seconds=3600)), "spec.max_duration"),
        change(asked(max_cost=workload.Money(nanos=1)), "spec.max_cost"),
    ]
)
DECISIONS: st.SearchStrategy[Decide] = (
    st.sampled_from([create(), start, stop, restart]) | CHANGES | REPORTS | REPORTS
)
RARE: st.SearchStrategy[Decide] = st.sampled_from([delete, clear_away, volume_gone(1)])


def _on_its_way(length: int) -> list[Decide]:
    """Follow an attempt as far as it ordinarily goes."""
    ordinary: list[Callable[[int], Decide]] = [
        queued,
        admitted,
        lambda attempt: pending(attempt=attempt),
        lambda attempt: started(0, attempt),
        lambda attempt: ready(attempt=attempt),
        lambda attempt: unready(attempt=attempt),
        lambda attempt: ended(0, attempt=attempt),
        lambda attempt: pending("CRASH_LOOP_BACKOFF", 2, attempt),
        lambda attempt: started(1, attempt),
    ]
    return [reported(report) for report in ordinary[:length]]


def _at_its_end(asked: bool, outcome: workload.Outcome.ValueType) -> list[Decide]:
    """Let an attempt end, asked for or by itself."""
    over = reported(lambda attempt: finished(outcome, attempt=attempt))
    return [stop, over] if asked else [over]


# Mostly one decision, and now and then an attempt that goes on, or ends, as it should.
STEPS: st.SearchStrategy[list[Decide]] = st.one_of(
    st.builds(lambda decide: [decide], DECISIONS),
    st.builds(lambda decide: [decide], DECISIONS),
    st.builds(_on_its_way, st.integers(1, 9)),
    st.builds(_at_its_end, st.booleans(), OUTCOMES),
)
RARE_STEPS: st.SearchStrategy[list[Decide]] = st.one_of(
    STEPS,
    st.builds(lambda decide: [decide], RARE),
    st.builds(lambda asked, how: [*_at_its_end(asked, how), delete], st.booleans(), OUTCOMES),
)


def play(decisions: Sequence[Decide], close_after: int) -> Life:
    """Take decisions as far as they are allowed; the project is closed on the way."""
    life = Life()
    for place, decide in enumerate(decisions):
        try:
            life.do(decide)
        except Refused:
            continue
        if place == close_after:
            life.close()
    return life


def _told(before: list[Decide], after: list[list[Decide]], close_after: int, vacated: bool) -> Life:
    steps = [decide for step in after for decide in step]
    life = play([*before, create(), *steps], close_after)
    return life.vacate() if vacated and not life.now.instance.lives else life


# Lives from before the creation to some time after it; one in three has its project closed.
HISTORIES: st.SearchStrategy[Life] = st.builds(
    _told,
    st.lists(DECISIONS, max_size=2),
    st.lists(STEPS, max_size=15) | st.lists(RARE_STEPS, max_size=15),
    st.integers(0, 45),
    st.booleans(),
)
