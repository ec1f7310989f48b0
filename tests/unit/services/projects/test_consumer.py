"""What projects does because a service has left one."""

from __future__ import annotations

from fermion.api.projects import v1 as api
from services.projects import aggregate
from services.projects.consumer import Departures
from tests.unit.services.history import History, names
from tests.unit.services.projects.life import PROJECT, archive, lived


def heard(fact: api.ProjectVacated | api.UserRegistered) -> History:
    from_others = History("instances/0", lambda _: aggregate.place(api.ProjectDeleted(uid="x")))
    from_others.say([fact])
    return from_others


async def test_a_departure_is_decided_on_the_project_that_was_left() -> None:
    said = api.ProjectVacated(uid=PROJECT, project="one", service="instances", through=3)
    (reaction,) = await Departures("instances").react(heard(said).records[0])
    assert reaction.streams == (f"project/{PROJECT}",)
    life = lived([archive])
    state = reaction.fold(life.history.stream(reaction.streams[0]))
    assert names(reaction.decide(state)) == ["ProjectVacatedBy"]


async def test_other_facts_lead_to_nothing() -> None:
    assert await Departures("instances").react(heard(api.UserRegistered()).records[0]) == []
