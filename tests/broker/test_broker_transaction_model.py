"""Transactions against a model: each ends once, whatever happens, and producers are asked about those that are open."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transaction_kit import Kit

from rocketq.names import CHECK_MAX_TIME_TOPIC

COMMIT, ROLLBACK = 8, 12
ENDS = {COMMIT: "committed", ROLLBACK: "rolled back"}
TIME_OUT, CHECK_MAX = 1000, 3


class Transaction:
    def __init__(self, sent: dict[str, str], born: int) -> None:
        self.sent = sent
        self.born = born
        self.state = "open"
        #: Questions that are certainly saved, and all.
        self.saved_checks = self.checks = 0


class Transactions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="rocketq-transactions-"))
        self.kit = Kit(self.directory, transaction_time_out=TIME_OUT, transaction_check_max=CHECK_MAX)
        self.all: dict[str, Transaction] = {}

    def teardown(self) -> None:
        self.kit.close()
        shutil.rmtree(self.directory)

    def open(self) -> list[Transaction]:
        return [each for each in self.all.values() if each.state == "open"]

    @rule(count=st.integers(1, 4))
    def send(self, count: int) -> None:
        for _ in range(count):
            name = f"m{len(self.all)}"
            self.all[name] = Transaction(self.kit.send(name), self.kit.now)

    @precondition(lambda self: self.all)
    @rule(data=st.data(), how=st.sampled_from([COMMIT, ROLLBACK, 0]))
    def end(self, data: st.DataObject, how: int) -> None:
        transaction = data.draw(st.sampled_from(list(self.all.values())))
        code = self.kit.code(self.kit.end(transaction.sent, how))
        if how == 0:
            assert code is None
        elif transaction.state == "open":
            assert code == 0
            transaction.state = ENDS[how]
        else:
            assert code == (0 if transaction.state == ENDS[how] else 4)

    @precondition(lambda self: self.all)
    @rule(data=st.data(), hows=st.lists(st.sampled_from([COMMIT, ROLLBACK]), min_size=2, max_size=4))
    def end_several_times_in_one_read(self, data: st.DataObject, hows: list[int]) -> None:
        transaction = data.draw(st.sampled_from(list(self.all.values())))
        opaques = [self.kit.end(transaction.sent, how, together=True) for how in hows]
        self.kit.broker.batch.end()
        if transaction.state == "open":
            transaction.state = ENDS[hows[0]]
        codes = [0 if transaction.state == ENDS[how] else 4 for how in hows]
        assert [self.kit.code(opaque) for opaque in opaques] == codes

    @rule(ms=st.integers(1, 3000))
    def time_passes(self, ms: int) -> None:
        self.kit.now += ms

    @rule()
    def ask(self) -> None:
        asked = self.kit.round()
        assert len(set(asked)) == len(asked)
        due = {
            name
            for name, each in self.all.items()
            if each.state == "open" and each.born + TIME_OUT <= self.kit.now
        }
        for name in due - set(asked):
            assert self.all[name].checks >= CHECK_MAX
            self.all[name].state = "given up"
        assert set(asked) <= due
        for name in asked:
            assert self.all[name].saved_checks < CHECK_MAX
            self.all[name].checks += 1

    @rule()
    def save(self) -> None:
        self.kit.checkpoint()
        for each in self.open():
            each.saved_checks = each.checks

    @rule()
    def kill(self) -> None:
        self.kit.kill()
        for each in self.open():
            each.checks = each.saved_checks  # no more are certain

    @rule()
    def restart(self) -> None:
        self.kit.close()
        self.kit.open()
        for each in self.open():
            each.saved_checks = each.checks

    @precondition(lambda self: self.open())
    @rule(data=st.data(), how=st.sampled_from([COMMIT, ROLLBACK]))
    def kill_while_an_end_is_written(self, data: st.DataObject, how: int) -> None:
        """Of a commit the message is there and the op is not; of a rollback nothing is."""
        transaction = data.draw(st.sampled_from(self.open()))
        self.kit.end(transaction.sent, how)
        self.kit.kill(torn=True)
        if how == COMMIT:
            transaction.state = "committed"
        for each in self.open():
            each.checks = each.saved_checks

    @rule(lost=st.sampled_from(["halfMessages.json", "consumerOffset.json"]))
    def lose_a_file(self, lost: str) -> None:
        self.kit.close()
        for path in (self.directory / "config").glob(f"{lost}*"):
            path.unlink()
        self.kit.open()
        for each in self.open():
            each.checks = each.saved_checks = 0 if lost == "halfMessages.json" else each.checks

    @invariant()
    def each_ended_once_or_is_open(self) -> None:
        def names(topic: str) -> list[str]:
            return sorted(record.body.decode() for record in self.kit.read(topic))

        def in_state(state: str) -> list[str]:
            return sorted(name for name, each in self.all.items() if each.state == state)

        assert names("T") == in_state("committed")
        assert names(CHECK_MAX_TIME_TOPIC) == in_state("given up")
        halves = self.kit.broker.transactions.halves
        assert sorted(halves.open) == sorted(int(each.sent["tranStateTableOffset"]) for each in self.open())


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
