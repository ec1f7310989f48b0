"""When something starts: admission run forward, with nothing new, and every end at its latest."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Final

from services.scheduler.admission import Admit, admit
from services.scheduler.placement import FOREVER
from services.scheduler.state import State

# So many moments are looked at; beyond them nobody knows.
STEPS_MAX: Final = 2000
ADMITTED_MAX: Final = 1_000_000


def latest_start(state: State, uid: str, now: int) -> int | None:
    """
    When a workload starts at the latest, if nothing else comes and no limit changes.

    What has no end never ends: None where it hangs on that, where it is given up before, or where
    it lies further ahead than is looked. `state` is used up.
    """
    ends = [
        (work.end, work.uid)
        for work in state.works.values()
        if work.held is not None and not work.ended and work.end < FOREVER
    ]
    heapq.heapify(ends)
    for _ in range(STEPS_MAX):
        for decision in admit(state, now, ADMITTED_MAX):
            if isinstance(decision, Admit):
                if decision.uid == uid:
                    return now
                end = state.works[decision.uid].end
                if end < FOREVER:
                    heapq.heappush(ends, (end, decision.uid))
        due = min(ends[0][0] if ends else FOREVER, state.next_time(now))
        if uid not in state.works or due >= FOREVER:
            return None
        now = max(now, due)
        while ends and ends[0][0] <= now:
            _, ended = heapq.heappop(ends)
            if ended in state.works:
                state.put(replace(state.works[ended], ended=True, replicas=()))
    return None
