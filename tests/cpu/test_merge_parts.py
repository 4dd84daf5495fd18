"""Who merges which rows of an item (csrc/kernels/merge_parts.h): in whatever order its workers get on, each
row is merged once, by a worker that can be sure of all partials, and the word is zero again.
"""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanattn import schedule
from leanattn._schedule import MergeTicket

MOST_AT_ONCE = 24  # more partials are merged in groups


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 128), step=st.sampled_from([1, 4, 8, 16]), partials=st.integers(2, MOST_AT_ONCE + 2)
)
def test_parts_are_all_rows_in_whole_steps(rows: int, step: int, partials: int) -> None:
    parts = schedule.merge_parts(rows, step, partials)
    assert list(chain(*parts)) == list(range(rows))
    assert all(part.start % step == 0 and len(part) > 0 for part in parts)
    steps = [-(-len(part) // step) for part in parts]
    assert max(steps) - min(steps) <= 1
    most = partials if partials <= MOST_AT_ONCE else 1
    assert len(parts) == min(most, -(-rows // step))


class Item:
    """The workers of an item, as take_merge_ticket() of tickets.cuh lets them get on, which is said once more
    here: a step is an access to the word. `waits`: which of them have nothing else to do.
    """

    def __init__(self, parts: int, waits: tuple[bool, ...]) -> None:
        self.tickets = [MergeTicket(len(waits), parts, own) for own in range(len(waits))]
        self.waits = [wait and ticket.has_part for wait, ticket in zip(waits, self.tickets, strict=True)]

    def step(self, state: State, worker: int, written: bool) -> State:
        """`written`: whether the worker's partial is when it looks at the word."""
        word, places, merged = state
        ticket, waits, place = self.tickets[worker], self.waits[worker], places[worker]
        parts = added = 0
        if place == "arrives":
            added = ticket.arrival + (0 if waits else ticket.decision)
            parts = ticket.parts_on_arrival(word)
            place = "ends" if not waits else ("is certain" if parts else "looks")
        elif place == "looks":
            if ticket.all_arrived(word):
                parts, place = ticket.own_part, "is certain"
            elif written:
                place = "decides"
        else:
            added = ticket.decision
            parts = ticket.parts_on_decision(word) if place == "decides" else 0
            place = "ends"
        if parts:
            assert all(other != "arrives" for w, other in enumerate(places) if w != worker)
            assert merged & parts == 0
        word += added
        if added and ticket.complete(word):
            word = 0
        return word, (*places[:worker], place, *places[worker + 1 :]), merged | parts


State = tuple[int, tuple[str, ...], int]  # the word, where the workers are, the parts that are merged


@pytest.mark.parametrize("partials", [2, 3, 4])
def test_every_order(partials: int) -> None:
    for parts in range(1, partials + 1):
        for waiting in range(2**partials):
            item = Item(parts, tuple(waiting >> i & 1 == 1 for i in range(partials)))
            states: list[State] = [(0, ("arrives",) * partials, 0)]
            seen = set(states)
            ends = 0
            while states:
                state = states.pop()
                workers = [w for w, place in enumerate(state[1]) if place != "ends"]
                if not workers:
                    ends += 1
                    assert state == (0, ("ends",) * partials, 2**parts - 1)
                after = {item.step(state, w, written) for w in workers for written in (False, True)}
                states += after - seen
                seen |= after
            assert ends == 1


@settings(max_examples=300, deadline=None)
@given(data=st.data(), partials=st.integers(2, MOST_AT_ONCE))
def test_any_order_of_many_workers(data: st.DataObject, partials: int) -> None:
    parts = data.draw(st.integers(1, partials))
    item = Item(parts, tuple(data.draw(st.booleans()) for _ in range(partials)))
    state: State = (0, ("arrives",) * partials, 0)
    random = data.draw(st.randoms(use_true_random=False))
    while workers := [w for w, place in enumerate(state[1]) if place != "ends"]:
        state = item.step(state, random.choice(workers), random.random() < 0.5)
    assert state == (0, ("ends",) * partials, 2**parts - 1)
