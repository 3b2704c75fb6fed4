"""The collector of batches against any order of arrivals, departures, deadlines and ends of batches.

The clock is a number. Between two events the collector is looked at whenever it asked for that, as its shell does.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servepipe.graph.batching.collector import Collector, Item, Settings

times = st.integers(0, 50).map(lambda ticks: ticks / 10)


class Machine(RuleBasedStateMachine):
    """Every item is at any time in exactly one of: waiting, running, ended, expired, left."""

    @initialize(size=st.integers(1, 4), wait=times)
    def begin(self, size: int, wait: float) -> None:
        self.now = 0.0
        self.collector: Collector[Item] = Collector(Settings(size, wait))
        self.waiting: list[Item] = []
        self.running: list[Item] | None = None
        self.there: list[Item] = []
        """Of the running batch those that somebody waits for."""
        self.started: list[Item] = []
        self.over: set[Item] = set()
        self.again_at: float | None = None
        self.idle_with_items_since: float | None = None
        self.callers = 1
        """Most that a batch may wait for."""

    @rule(after=st.none() | times, group=st.sampled_from("aab"))
    def arrives(self, after: float | None, group: str) -> None:
        item = Item(len(self.over), self.now, None if after is None else self.now + after, group)
        self.collector.add(item)
        self.waiting.append(item)
        self.look()

    @rule(burst=st.integers(2, 9))
    def many_arrive(self, burst: int) -> None:
        for _ in range(burst):
            item = Item(None, self.now)
            self.collector.add(item)
            self.waiting.append(item)
        self.look()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def one_that_waits_leaves(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(item)
        assert not self.collector.leave(item)
        self.over.add(item)
        self.look()

    @precondition(lambda self: self.running and self.there)
    @rule(data=st.data())
    def one_that_runs_leaves(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.there))
        self.there.remove(item)
        assert self.collector.leave(item) == (not self.there)
        assert not self.collector.leave(item)

    @precondition(lambda self: self.running is not None)
    @rule()
    def the_batch_ends(self) -> None:
        assert self.running is not None
        self.collector.ended(self.now)
        self.callers = len(self.there) + len(self.waiting)
        self.over |= {*self.running}
        self.running, self.there = None, []
        self.look()

    @rule(seconds=times)
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.again_at is not None and self.again_at <= end:
            assert self.again_at > self.now, "it asks for a look that has just been"
            self.now = self.again_at
            self.look()
        self.now = end

    @rule(size=st.integers(1, 4), wait=times)
    def settings_change(self, size: int, wait: float) -> None:
        self.collector.settings = Settings(size, wait)
        self.look()

    @rule()
    def it_is_looked_at_for_nothing(self) -> None:
        self.look()

    def look(self) -> None:
        expired, batch, self.again_at = self.collector.look(self.now)
        for item in expired:
            assert item.deadline is not None
            assert item.deadline <= self.now
            self.waiting.remove(item)
            self.over.add(item)
        late = [item for item in self.waiting if item.deadline is not None and item.deadline <= self.now]
        assert not late, "no item outlives its deadline in the queue"
        if batch:
            self.takes(list(batch))
        elif self.running is None and self.waiting:
            # There was a reason to wait, and there is an end to it.
            assert len(self.waiting) < min(self.callers, self.collector.settings.max_size)
            assert self.again_at is not None

    def takes(self, batch: list[Item]) -> None:
        size = self.collector.settings.max_size
        assert self.running is None, "one batch at a time"
        assert len(batch) <= size
        assert len({item.group for item in batch}) == 1
        assert batch[0] is self.waiting[0], "nobody is overtaken for ever"
        alike = [item for item in self.waiting if item.group == batch[0].group]
        assert batch == alike[: len(batch)], "in order"
        assert len(batch) == min(len(alike), size), "no smaller than it could be"
        assert not {*batch} & ({*self.started} | self.over), "nothing is computed twice"
        self.waiting = [item for item in self.waiting if item not in batch]
        self.started += batch
        self.running, self.there = batch, [*batch]

    @invariant()
    def the_method_is_idle_no_longer_than_it_may_be(self) -> None:
        if not hasattr(self, "now"):
            return
        if self.running is None and self.waiting:
            if self.idle_with_items_since is None:
                self.idle_with_items_since = self.now
            # Items may have come and gone since; the one that waits now has waited for part of that time at most.
            oldest = max(self.idle_with_items_since, self.waiting[0].arrived)
            assert self.now - oldest <= self.collector.settings.max_wait_s + 1e-9
        else:
            self.idle_with_items_since = None

    def teardown(self) -> None:
        """Time goes on until everything has had its turn."""
        for _ in range(1000):
            if self.running is not None:
                self.the_batch_ends()
            elif self.waiting:
                assert self.again_at is not None
                self.now = max(self.now, self.again_at)
                self.look()
            else:
                return
        raise AssertionError("it does not come to an end")


TestCollector = Machine.TestCase
TestCollector.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


@given(st.integers(1, 64), st.integers(1, 8))
@settings(deadline=None)
def test_callers_that_come_back_soon_share_batches(callers: int, size: int) -> None:
    """After the first rounds batches are as large as they can be, and start as soon as they are."""
    now = 0.0
    collector: Collector[Item] = Collector(Settings(size, 1.0))
    coming = callers
    for round_ in range(6):
        for _ in range(coming):
            collector.add(Item(None, now))
        _, batch, _ = collector.look(now)
        assert len(batch) == min(callers, size), round_
        now += 10
        collector.ended(now)
        coming = len(batch)
        now += 0.5
        if callers <= size:
            assert collector.look(now).batch == (), "none of them is back"


def test_a_single_caller_never_waits() -> None:
    collector: Collector[Item] = Collector(Settings(32, 1.0))
    for second in range(5):
        item = Item(second, float(second))
        collector.add(item)
        assert collector.look(float(second)).batch == [item]
        collector.ended(second + 0.5)


def test_it_waits_for_those_who_were_here_before() -> None:
    collector: Collector[Item] = Collector(Settings(32, 1.0))
    collector.add(Item("a", 0.0))
    assert len(collector.look(0.0).batch) == 1
    collector.add(Item("b", 0.1))
    collector.add(Item("c", 0.2))
    assert collector.look(0.2) == ((), (), None)  # one runs
    collector.ended(0.5)

    assert collector.look(0.5) == ((), (), 1.5)  # a may come again
    collector.add(Item("a", 0.6))
    assert [item.value for item in collector.look(0.6).batch] == ["b", "c", "a"]
    collector.ended(1.0)

    collector.add(Item("a", 1.2))
    assert collector.look(1.2).again_at == 2.2  # nobody else comes
    assert [item.value for item in collector.look(2.2).batch] == ["a"]
