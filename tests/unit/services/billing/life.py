"""Random lives of replicas and volumes as executors tell of them, with the prices that rule meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from fermion.api.billing import v1 as billing
from fermion.api.workload import v1 as api
from services.billing.book import Book, book_of
from services.billing.metering import HOUR_MS, ReplicaFact, Said, VolumeFact

# 2026-11-24 12:00 UTC; lives begin a little before, so that many go over the hour.
NOON_MS: Final = 1_795_521_600_000
assert NOON_MS % HOUR_MS == 0
START_MS: Final = NOON_MS - 40
# Later than anything that happens.
LATE_MS: Final = NOON_MS + 400

CLUSTERS: Final = ("01jd3k5v7m2r8q4w6x9y0z1a2b", "01jd3k5v7m2r8q4w6x9y0z1a2c")
MODELS: Final = ("", "H100-80GB", "SIM-GPU")
USERS_DOING: Final = (api.CAUSE_USER_STOP, api.CAUSE_SCALE_IN, api.CAUSE_MAX_DURATION)
PLATFORMS_DOING: Final = (api.CAUSE_PREEMPTION, api.CAUSE_NODE_DRAIN, api.CAUSE_PEER_LOST)

# As prices.yaml has it: what is billed, and how much from the beginning is free all the same.
TABLE: Final = {
    billing.BILLABLE_STATE_RUNNING: (True, 0),
    billing.BILLABLE_STATE_DRAINING_BY_USER: (True, 10_000),
    billing.BILLABLE_STATE_DRAINING_BY_PLATFORM: (True, 120_000),
    billing.BILLABLE_STATE_HELD: (False, 0),
    billing.BILLABLE_STATE_BACKOFF: (False, 0),
    billing.BILLABLE_STATE_UNREACHABLE: (False, 0),
    billing.BILLABLE_STATE_STORAGE: (True, 0),
}

Fact = ReplicaFact | VolumeFact


@dataclass(frozen=True, slots=True)
class Life:
    """What the executors of some clusters said, each in the order of its journal, and all price books."""

    said: tuple[Said, ...]
    price_books: tuple[billing.PriceBook, ...]

    @property
    def books(self) -> tuple[Book, ...]:
        """The price books as the meter takes them."""
        return tuple(book_of(one) for one in self.price_books)

    def of(self, uid: str) -> tuple[Said, ...]:
        """All that was said of one replica or volume."""
        return tuple(one for one in self.said if one.message.uid == uid)

    @property
    def uids(self) -> tuple[str, ...]:
        """Of whom something was said."""
        return tuple(dict.fromkeys(one.message.uid for one in self.said))


def stamp(at_ms: int) -> Timestamp:
    """Write a moment."""
    found = Timestamp()
    found.FromMilliseconds(at_ms)
    return found


def free(ms: int) -> Duration:
    """Write a length of time."""
    found = Duration()
    found.FromMilliseconds(ms)
    return found


def witness(
    at_ms: int, evidence: api.EvidenceClass.ValueType = api.EVIDENCE_CLASS_RECORDED
) -> api.Witness:
    """It happened then."""
    return api.Witness(occurred_time=stamp(at_ms), observed_time=stamp(at_ms), evidence=evidence)


def price_book(
    number: int = 1,
    effective_ms: int = 0,
    table: dict[billing.BillableState.ValueType, tuple[bool, int]] = TABLE,
    gpu: dict[str, int] | None = None,
    cpu: int = 40_000_000,
    memory: int = 5_000_000,
    storage: int = 0,
    causes: Sequence[api.Cause.ValueType] = PLATFORMS_DOING,
) -> billing.PriceBook:
    """A price book; the table and the prices of prices.yaml unless others are given."""
    models = {"": 2_000_000_000, "SIM-GPU": 2_400_000_000} if gpu is None else gpu
    gpu_price, cpu_price = billing.DIMENSION_GPU, billing.DIMENSION_CPU
    return billing.PriceBook(
        version=f"v{number}",
        currency="USD",
        effective_time=stamp(effective_ms),
        prices=[
            *(
                billing.Price(dimension=gpu_price, gpu_type=model, price_nanos=nanos)
                for model, nanos in models.items()
            ),
            billing.Price(dimension=cpu_price, price_nanos=cpu),
            billing.Price(dimension=billing.DIMENSION_MEMORY, price_nanos=memory),
            billing.Price(dimension=billing.DIMENSION_STORAGE, price_nanos=storage),
        ],
        states=[
            billing.StateRule(state=state, billed=billed, free=free(ms))
            for state, (billed, ms) in table.items()
        ],
        platform_causes=causes,
        number=number,
    )


# Other tables: shorter free times that lives of a moment see the end of, and other policies.
TABLES: Final = (
    TABLE,
    *(
        {
            **TABLE,
            billing.BILLABLE_STATE_DRAINING_BY_USER: (True, short),
            billing.BILLABLE_STATE_DRAINING_BY_PLATFORM: (True, long),
            billing.BILLABLE_STATE_HELD: (held, 6),
            billing.BILLABLE_STATE_BACKOFF: (held, 0),
        }
        for short, long, held in ((0, 4, False), (4, 15, False), (4, 15, True), (15, 4, True))
    ),
    {
        **TABLE,
        billing.BILLABLE_STATE_RUNNING: (False, 0),
        billing.BILLABLE_STATE_UNREACHABLE: (True, 4),
        billing.BILLABLE_STATE_STORAGE: (False, 0),
    },
    {
        **TABLE,
        billing.BILLABLE_STATE_RUNNING: (True, 6),
        billing.BILLABLE_STATE_DRAINING_BY_USER: (True, 4),
        billing.BILLABLE_STATE_DRAINING_BY_PLATFORM: (False, 4),
    },
)
# For a GPU of any model, one of H100-80GB, CPU, memory and storage; some that no hour divides.
PRICES: Final = (
    (2_000_000_000, 2_950_000_000, 40_000_000, 5_000_000, 0),
    (1_234_567_891, 1, 40_000_000, 0, 5_000_001),
    (0, 2_950_000_000, 1_234_567_891, 5_000_000, 1_234_567_891),
)
# With the last one, a draining becomes the other's doing.
CAUSES: Final = (PLATFORMS_DOING, PLATFORMS_DOING, USERS_DOING)


@st.composite
def price_books(draw: st.DrawFn) -> tuple[billing.PriceBook, ...]:
    """One to three, of which each later one comes into force later."""
    effective_ms = draw(st.integers(START_MS - 20, START_MS + 30))
    made = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        gpu, h100, cpu, memory, storage = draw(st.sampled_from(PRICES))
        made.append(
            price_book(
                number,
                effective_ms,
                draw(st.sampled_from(TABLES)),
                {"": gpu, MODELS[1]: h100},
                cpu,
                memory,
                storage,
                draw(st.sampled_from(CAUSES)),
            )
        )
        effective_ms += draw(st.integers(1, 50))
    return tuple(made)


labels = st.sampled_from(
    ({}, {"team": "a"}, {"team": "b"}, {"run": "a"}, {"team": "a", "run": "b"})
)

# Of every model some, of a model some sizes; some have no GPU, and one has nothing at all.
skus = st.sampled_from(
    [
        api.Sku(gpu_type=model, gpu_milli=gpus, cpu_milli=cores, memory_bytes=memory)
        for model in MODELS
        for gpus, cores, memory in (
            (500, 250, 2**30),
            (1000, 250, 0),
            (8000, 16_000, 3_000_000_007),
        )
    ]
    + [api.Sku(cpu_milli=250, memory_bytes=2**30), api.Sku()]
)


@st.composite
def subjects(draw: st.DrawFn) -> api.Subject:
    """Whose time it is: few owners, so that some have several replicas."""
    place = draw(st.integers(0, 2))
    project = ("acme", "acme", "umbra")[place]
    attempt = draw(st.integers(1, 2))
    return api.Subject(
        project=project,
        owner=f"projects/{project}/instances/lab-{place}",
        owner_uid=f"inst_{place}",
        kind=api.KIND_INSTANCE,
        workload=f"wkl_{place}_{attempt}",
        attempt=attempt,
        user=f"user_{place}",
        labels=draw(labels),
        purchase=draw(
            st.sampled_from((*(api.PURCHASE_ANY,) * 7, api.PURCHASE_PLATFORM)),
        ),
        sku=draw(skus),
    )


class _Teller:
    """Facts of one replica, each with when it was said; time goes on by small steps, or stands still."""

    def __init__(self, draw: st.DrawFn, uid: str) -> None:
        self.told: list[tuple[int, Fact]] = []
        self._draw = draw
        self._uid = uid
        self._subject = draw(subjects())
        self._project = self._subject.project
        self._now = START_MS + draw(st.integers(0, 30))
        self._last = self._now
        self._relabels = self._resizes = self._losses = self._corrections = 0
        self._lost = self._drained = False

    def chance(self, one_in: int) -> bool:
        """Once in so many."""
        return self._draw(st.integers(1, one_in)) == 1

    def pass_time(self) -> None:
        """Go on by nothing, or a little."""
        self._now += self._draw(st.sampled_from((0, 1, 2, 3, 5, 8, 13, 21)))

    def say(self, fact: Fact) -> None:
        """Record a fact."""
        self.told.append((self._now, fact))

    def live(self) -> None:
        """All that happens to one replica."""
        uid, project = self._uid, self._project
        self.say(api.ReplicaScheduled(uid=uid, subject=self._subject, witness=witness(self._last)))
        self.pass_time()
        run = -1
        for _ in range(self._draw(st.integers(0, 3))):
            self._idle()
            run = self._run(run + 1)
            if run < 0:
                return
        self._idle()
        if self.chance(5):
            return
        at = self._last if self.chance(2) else self._now
        self.say(api.ReplicaReleased(uid=uid, witness=witness(at), project=project))
        self.pass_time()
        if run >= 0 and self.chance(4):
            self._correct(run)

    def _run(self, run: int) -> int:
        """One run, and its number; -1 where it is open for good."""
        uid, project = self._uid, self._project
        if self.chance(8):
            self.say(
                api.ReplicaRunMissed(
                    uid=uid,
                    from_run=run,
                    to_run=run,
                    window_start_time=stamp(self._last),
                    window_end_time=stamp(self._now),
                    witness=witness(self._now),
                    project=project,
                )
            )
            run += 1
        self._last = start = self._now
        self.say(
            api.ReplicaStarted(uid=uid, subject=self._subject, run=run, witness=witness(start))
        )
        if not self.chance(6):
            self.pass_time()
            for _ in range(self._draw(st.integers(0, 4))):
                self._something()
                self.pass_time()
            if self.chance(6):
                return -1
        # Of what was lost, the end is dated by the last proof of life as well as by a record.
        self._last = self._draw(st.integers(start, self._now)) if self.chance(4) else self._now
        self.say(api.ReplicaEnded(uid=uid, run=run, witness=witness(self._last), project=project))
        if self.chance(4):
            self.pass_time()
            for _ in range(self._draw(st.integers(1, 2))):
                self._correct(run)
        return run

    def _idle(self) -> None:
        """Something may happen while it does not run."""
        if self.chance(4):
            self._drain()
        if self.chance(6):
            self._relabel()
        self.pass_time()

    def _something(self) -> None:
        self._draw(
            st.sampled_from(
                (self._drain, self._lose, self._lose, self._relabel, self._resize, self.pass_time)
            )
        )()

    def _drain(self) -> None:
        if self._drained:
            return
        self._drained = True
        cause = self._draw(st.sampled_from(USERS_DOING + PLATFORMS_DOING))
        self.say(
            api.ReplicaDraining(
                uid=self._uid, cause=cause, witness=witness(self._now), project=self._project
            )
        )

    def _lose(self) -> None:
        """It is lost since a moment ago, or found."""
        if self._lost:
            self._lost = False
            self.say(
                api.ReplicaFound(
                    uid=self._uid,
                    n=self._losses,
                    witness=witness(self._now),
                    project=self._project,
                )
            )
            return
        self._lost = True
        self._losses += 1
        at = max(self._last, self._now - self._draw(st.integers(0, 6)))
        self.say(
            api.ReplicaLost(
                uid=self._uid,
                n=self._losses,
                witness=witness(at, api.EVIDENCE_CLASS_LAST_PROOF),
                project=self._project,
            )
        )

    def _relabel(self) -> None:
        self._relabels += 1
        self.say(
            api.ReplicaRelabelled(
                uid=self._uid,
                n=self._relabels,
                labels=self._draw(labels),
                witness=witness(self._now),
                project=self._project,
            )
        )

    def _resize(self) -> None:
        self._resizes += 1
        self.say(
            api.ReplicaResized(
                uid=self._uid,
                n=self._resizes,
                sku=self._draw(skus),
                witness=witness(self._now),
                project=self._project,
            )
        )

    def _correct(self, run: int) -> None:
        """Its start, its end or both lay elsewhere; also so that they are none, or overlap."""
        self._corrections += 1
        fact = api.ReplicaRunCorrected(
            uid=self._uid,
            run=run,
            n=self._corrections,
            witness=witness(self._now),
            project=self._project,
        )
        which = self._draw(st.sampled_from(("start", "end", "end", "both")))
        if which != "end":
            fact.start_time.CopyFrom(stamp(self._last + self._draw(st.integers(-20, 5))))
        if which != "start":
            fact.end_time.CopyFrom(stamp(self._last + self._draw(st.integers(-12, 9))))
        self.say(fact)


@st.composite
def replicas(draw: st.DrawFn, uid: str) -> list[tuple[int, Fact]]:
    """Facts of one replica, each with when it was said."""
    teller = _Teller(draw, uid)
    teller.live()
    return teller.told


@st.composite
def volumes(draw: st.DrawFn, uid: str) -> list[tuple[int, Fact]]:
    """Facts of one volume, each with when it was said."""
    subject = draw(subjects())
    subject.ClearField("attempt")
    subject.ClearField("workload")
    subject.sku.CopyFrom(api.Sku(storage_bytes=draw(st.sampled_from((0, 2**30, 10**12 + 7)))))
    bound = START_MS + draw(st.integers(0, 60))
    told: list[tuple[int, Fact]] = [
        (bound, api.VolumeBound(uid=uid, subject=subject, witness=witness(bound)))
    ]
    if draw(st.booleans()):
        deleted = bound + draw(st.integers(0, 90))
        told.append(
            (
                deleted,
                api.VolumeDeleted(uid=uid, witness=witness(deleted), project=subject.project),
            )
        )
    return told


@st.composite
def histories(draw: st.DrawFn) -> Life:
    """
    Some replicas and volumes on one or two clusters, as they may really have been.

    Each slot is filled once, as statement ids have it. A journal tells in the order in which things
    were seen; what else it holds takes positions in between.
    """
    clusters = CLUSTERS[: draw(st.integers(1, 2))]
    told: dict[str, list[tuple[int, Fact]]] = {cluster: [] for cluster in clusters}
    for n in range(draw(st.integers(1, 3))):
        told[draw(st.sampled_from(clusters))] += draw(replicas(f"rep_{n}"))
    for n in range(draw(st.integers(0, 1))):
        told[draw(st.sampled_from(clusters))] += draw(volumes(f"vol_{n}"))
    said = [
        Said(fact, cluster, 3 * place + 1)
        for cluster, facts in told.items()
        for place, (_, fact) in enumerate(sorted(facts, key=lambda one: one[0]))
    ]
    return Life(tuple(said), draw(price_books()))


def occurred_ms(fact: Fact) -> int:
    """When it happened."""
    return fact.witness.occurred_time.ToMilliseconds()
