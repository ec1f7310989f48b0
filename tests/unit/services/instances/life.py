"""One instance's life as tests tell it: decisions by name, each on what was said before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from services.instances.config import Settings
from tests.unit.services.history import History

POLICY = Settings()
UID = ids.derived("inst", "test")
PROJECT = "acme"
NAME = "dev-1"
ADA = "user_ada"
NOTEBOOK = next(t for t in templates.first(POLICY) if t.kind == api.KIND_NOTEBOOK)

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


def change(wanted: api.Instance, *paths: str) -> Decide:
    """Change the named paths."""
    return partial(aggregate.change, asked=wanted, paths=paths, policy=POLICY)


def queued(attempt: int, code: str = "NO_CLUSTER") -> Decide:
    """Report why an attempt waits."""
    return partial(aggregate.queue, attempt=attempt, reason=workload.Reason(code=code))


def refused(attempt: int, code: str = "WITHDRAWN") -> Decide:
    """Report that an attempt will never run."""
    return partial(aggregate.refuse, attempt=attempt, reason=workload.Reason(code=code))


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


def reported(decide: Callable[..., Sequence[Fact]], offset: int, code: str) -> Decide:
    """Report about the attempt that is present when it is made, or one that is so many away."""
    about: list[int] = []

    def report(now: Situation) -> Sequence[Fact]:
        # Made again it is the same report, whatever the present attempt is by then.
        about.append(now.instance.attempt + offset)
        return decide(now, attempt=about[0], reason=workload.Reason(code=code))

    return report


CODES = st.sampled_from(["NO_CLUSTER", "QUOTA", "WITHDRAWN", "IMPOSSIBLE"])
REPORTS: st.SearchStrategy[Decide] = st.builds(
    reported,
    st.sampled_from([aggregate.queue, aggregate.refuse]),
    st.sampled_from([0, 0, 0, 0, -1, 1]),
    CODES,
) | st.just(wind_down)
CHANGES: st.SearchStrategy[Decide] = st.sampled_from(
    [
        change(api.Instance(labels={"team": "speech"}), "labels"),
        change(api.Instance(labels={}), "labels"),
        change(api.Instance(display_name="Bob's"), "display_name"),
        change(asked(image="jupyterlab:2"), "spec.image"),
        change(asked(max_duration=Duration(seconds=3600)), "spec.max_duration"),
    ]
)
DECISIONS: st.SearchStrategy[Decide] = (
    st.sampled_from([create(), start, stop, restart]) | CHANGES | REPORTS | REPORTS
)
RARE: st.SearchStrategy[Decide] = st.sampled_from([delete, clear_away])


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


def _told(before: list[Decide], after: list[Decide], close_after: int, vacated: bool) -> Life:
    life = play([*before, create(), *after], close_after)
    return life.vacate() if vacated and not life.now.instance.lives else life


# Lives from before the creation to some time after it; one in three has its project closed.
HISTORIES: st.SearchStrategy[Life] = st.builds(
    _told,
    st.lists(DECISIONS, max_size=2),
    st.lists(DECISIONS, max_size=15) | st.lists(DECISIONS | RARE, max_size=15),
    st.integers(0, 45),
    st.booleans(),
)
