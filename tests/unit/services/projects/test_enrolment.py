"""The rules of which clusters work may run on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import cast

import pytest
from hypothesis import given

from chassis.config import load
from chassis.envelope import NO_PROJECT
from chassis.refusals import Invalid
from chassis.testing.scenario import Scenario
from fermion.api.projects import v1 as api
from services.projects import aggregate, enrolment
from services.projects.config import Settings
from services.projects.enrolment import Cluster
from tests.unit.services.history import NOON
from tests.unit.services.projects.life import CLUSTERS, LIVES, Life

UID = CLUSTERS[0]
LATER = NOON + timedelta(hours=1)

clusters = Scenario(
    Cluster(), lambda state, fact, _: enrolment.evolve(state, cast(enrolment.Fact, fact))
)


def enrolled(at: float = 0) -> api.ClusterEnrolled:
    fact = api.ClusterEnrolled(cluster=UID, journal=f"executor/{UID}")
    fact.from_time.FromDatetime(NOON + timedelta(hours=at))
    return fact


def retired(at: float) -> api.ClusterRetired:
    fact = api.ClusterRetired(cluster=UID)
    fact.through_time.FromDatetime(NOON + timedelta(hours=at))
    return fact


def test_a_cluster_is_enrolled_once_with_the_journal_of_its_executor() -> None:
    after = clusters.given().when(enrolment.enrol, uid=UID, at=NOON).then(enrolled())
    after.when(enrolment.enrol, uid=UID, at=LATER).nothing()


def test_a_cluster_is_retired_once_and_only_if_it_is_there() -> None:
    clusters.given().when(enrolment.retire, uid=UID, at=NOON).refused("CLUSTER_NOT_FOUND")
    after = clusters.given(enrolled()).when(enrolment.retire, uid=UID, at=LATER).then(retired(1))
    after.when(enrolment.retire, uid=UID, at=LATER).nothing()


def test_an_operator_may_enrol_again_what_was_retired() -> None:
    after = (
        clusters.given(enrolled(), retired(1))
        .when(enrolment.enrol, uid=UID, at=NOON + timedelta(hours=2))
        .then(enrolled(2))
    )
    shown = enrolment.view(after.state)
    assert (shown.name, shown.retired) == (f"clusters/{UID}", False)
    assert not shown.HasField("retire_time")


def test_settings_enrol_what_was_never_known_and_nothing_else() -> None:
    after = clusters.given().when(enrolment.introduce, uid=UID, at=NOON).then(enrolled())
    after.when(enrolment.introduce, uid=UID, at=LATER).nothing()
    after.and_then(retired(1)).when(enrolment.introduce, uid=UID, at=LATER).nothing()


def test_a_clock_that_is_behind_does_not_turn_times_round() -> None:
    after = clusters.given(enrolled(2)).when(enrolment.retire, uid=UID, at=NOON).then(retired(2))
    after.when(enrolment.enrol, uid=UID, at=NOON).then(enrolled(2))


def test_a_cluster_belongs_to_no_project() -> None:
    for fact in (enrolled(), retired(1)):
        place = aggregate.place(fact)
        assert (place.stream, place.project) == (f"cluster/{UID}", NO_PROJECT)


@given(life=LIVES)
def test_a_cluster_that_is_retired_was_enrolled_before(life: Life) -> None:
    for uid in CLUSTERS:
        said = [record.message for record in life.history.stream(f"cluster/{uid}")]
        kinds = [api.ClusterEnrolled, api.ClusterRetired] * len(said)
        assert [type(fact) for fact in said] == kinds[: len(said)]
        times = [
            (fact.from_time if isinstance(fact, api.ClusterEnrolled) else fact.through_time)
            for fact in cast(list[enrolment.Fact], said)
        ]
        moments = [stamp.ToDatetime(tzinfo=UTC) for stamp in times]
        assert moments == sorted(moments)


def settings(text: str) -> Mapping[str, str]:
    return {"FERMION_PROJECTS_CLUSTERS": text}


def test_settings_name_clusters_by_uid() -> None:
    assert load(Settings, settings(" ".join(CLUSTERS))).clusters == CLUSTERS
    assert load(Settings, {}).clusters == ()


@pytest.mark.parametrize("text", ["local", UID.upper(), UID[:-1], f"cluster_{UID}", "i" * 26])
def test_what_is_no_uid_of_a_cluster_is_refused_at_start(text: str) -> None:
    with pytest.raises(Invalid) as error:
        load(Settings, settings(text))
    assert error.value.reason == "SETTING_INVALID"
    assert error.value.arguments["value"] == text
