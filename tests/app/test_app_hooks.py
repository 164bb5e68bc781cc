"""Middleware, signals and what becomes of a message, without a broker."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from app_messages import received

from rocketq import Message, Middleware, ReceivedMessage, Reject, Retry, RocketQ, signals
from rocketq.client import ConsumeResult, DeadLetter, RetryLater
from rocketq.consumers import Consumer
from rocketq.worker.execution import Execution, Outcome

SIGNALS = ["before_send", "after_send", "received", "consumed", "failed"]


class Recorder(Middleware):
    """Writes every hook into a list that it shares with others; raises where it is told to."""

    def __init__(self, name: str, log: list[str], **raises: BaseException) -> None:
        self.name, self.log, self.raises = name, log, raises

    def _note(self, hook: str, extra: str = "") -> None:
        self.log.append(f"{self.name}.{hook}{extra}")
        if hook in self.raises:
            raise self.raises[hook]

    def before_send(self, app: RocketQ, message: Message) -> None:
        self._note("before_send")

    def after_send(self, app: RocketQ, message: Message, result: Any, error: BaseException | None) -> None:
        self._note("after_send", f" {result or error!r}")

    def before_consume(self, consumer: Consumer, message: ReceivedMessage) -> None:
        self._note("before_consume")

    def after_consume(
        self, consumer: Consumer, message: ReceivedMessage, result: Any, error: BaseException | None
    ) -> None:
        self._note("after_consume", f" {result or error!r}")


class FakeProducer:
    """Stands for the network: notes what is sent and answers or fails."""

    def __init__(self, log: list[str], answer: Any) -> None:
        self.log, self.answer = log, answer
        self.sent: list[tuple[Message, dict[str, Any]]] = []

    def send(self, message: Message, **options: Any) -> Any:
        self.log.append("send")
        self.sent.append((message, options))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def log() -> Iterator[list[str]]:
    """A list that every signal is written to."""
    entries: list[str] = []
    receivers: list[Callable[..., None]] = []
    for name in SIGNALS:

        def note(app: RocketQ, name: str = name, **values: Any) -> None:
            entries.append(f"signal {name}")

        getattr(signals, name).connect(note)
        receivers.append(note)
    yield entries
    for name, receiver in zip(SIGNALS, receivers, strict=True):
        getattr(signals, name).disconnect(receiver)


def app_with(log: list[str], *middleware: Middleware, answer: Any = "result") -> tuple[RocketQ, FakeProducer]:
    app, producer = RocketQ("test", middleware=middleware), FakeProducer(log, answer)
    app._producer = producer  # type: ignore[assignment]
    return app, producer


def consume(app: RocketQ, function: Callable[..., Any], message: ReceivedMessage, **options: Any) -> Outcome:
    app.consumer("t", **options)(function)
    execution = Execution(app, app.consumers[-1])
    return asyncio.run(execution.arun(message)) if execution.consumer.is_async else execution.run(message)


def test_a_send_passes_middleware_and_signals_in_order(log: list[str]) -> None:
    app, _ = app_with(log, Recorder("a", log), Recorder("b", log))
    assert app.send("t", "x") == "result"  # type: ignore[comparison-overlap]
    assert log == [
        "a.before_send",
        "b.before_send",
        "signal before_send",
        "send",
        "signal after_send",
        "b.after_send 'result'",
        "a.after_send 'result'",
    ]


def test_a_send_that_fails_is_told_to_everybody_and_raises(log: list[str]) -> None:
    app, _ = app_with(log, Recorder("a", log), answer=OSError("down"))
    with pytest.raises(OSError, match="down"):
        app.send("t", "x")
    assert log == [
        "a.before_send",
        "signal before_send",
        "send",
        "signal after_send",
        "a.after_send OSError('down')",
    ]


def test_middleware_that_refuses_a_send_stops_it_and_ends_those_before(log: list[str]) -> None:
    app, _ = app_with(
        log, Recorder("a", log), Recorder("b", log, before_send=ValueError("no")), Recorder("c", log)
    )
    with pytest.raises(ValueError, match="no"):
        app.send("t", "x")
    assert log == ["a.before_send", "b.before_send", "a.after_send ValueError('no')"]


def test_middleware_can_change_a_message(log: list[str]) -> None:
    class Stamp(Middleware):
        def before_send(self, app: RocketQ, message: Message) -> None:
            message.properties["trace"] = "42"
            message.body = message.body.upper()

    app, producer = app_with(log, Stamp())
    app.send("t", "x")
    message, _ = producer.sent[0]
    assert (message.body, message.properties["trace"]) == (b"X", "42")


def test_a_key_orders_and_indexes_a_message(log: list[str]) -> None:
    app, producer = app_with(log)
    app.send("t", "x", tag="T", key="k", keys=["a", "b"], delay_level=2, properties={"p": "1"})
    message, options = producer.sent[0]
    assert (message.tag, message.keys, message.sharding_key, message.delay_level) == ("T", ["k", "a", "b"], "k", 2)
    assert options == {"key": "k", "selector": None, "timeout": 3.0}  # the producer takes the key's hash


def test_without_a_key_nothing_chooses_the_queue(log: list[str]) -> None:
    app, producer = app_with(log)
    app.send("t", "x", keys="only")
    message, options = producer.sent[0]
    assert (message.keys, message.sharding_key, options["key"]) == (["only"], None, None)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_consumption_passes_middleware_and_signals_in_order(log: list[str], asynchronous: bool) -> None:
    app, _ = app_with(log, Recorder("a", log), Recorder("b", log))

    def function(body: str) -> str:
        log.append(f"function {body}")
        return "done"

    async def afunction(body: str) -> str:
        return function(body)

    assert consume(app, afunction if asynchronous else function, received(b"x")) == ConsumeResult.SUCCESS
    assert log == [
        "signal received",
        "a.before_consume",
        "b.before_consume",
        "function x",
        "b.after_consume 'done'",
        "a.after_consume 'done'",
        "signal consumed",
    ]


def test_a_failure_is_signalled(log: list[str]) -> None:
    app, _ = app_with(log, Recorder("a", log))

    def function(body: str) -> None:
        raise KeyError("oops")

    assert isinstance(consume(app, function, received(b"x")), RetryLater)
    assert log == [
        "signal received",
        "a.before_consume",
        "a.after_consume KeyError('oops')",
        "signal failed",
    ]


def test_middleware_can_fail_or_reject_a_message_before_the_function(log: list[str]) -> None:
    app, _ = app_with(log, Recorder("a", log), Recorder("b", log, before_consume=Reject("not ours")))

    def function(body: str) -> None:
        log.append("function")

    assert isinstance(consume(app, function, received(b"x")), DeadLetter)
    assert "function" not in log
    assert log[-2:] == ["a.after_consume Reject('not ours')", "signal failed"]


def raising(error: BaseException) -> Callable[..., None]:
    def function(body: bytes) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("options", "error", "deliveries_before", "outcome"),
    [
        ({}, None, 0, ConsumeResult.SUCCESS),
        ({}, ValueError(), 0, RetryLater()),
        ({}, ValueError(), 15, RetryLater()),
        ({}, ValueError(), 16, DeadLetter()),
        ({"max_retries": 2}, ValueError(), 1, RetryLater()),
        ({"max_retries": 2}, ValueError(), 2, DeadLetter()),
        ({"max_retries": 0}, ValueError(), 0, DeadLetter()),
        ({}, Retry(), 0, RetryLater()),
        ({}, Retry(delay_level=4), 3, RetryLater(4)),
        ({}, Retry(delay_level=4), 16, DeadLetter()),
        ({}, Reject(), 0, DeadLetter()),
        ({}, SystemExit(1), 0, RetryLater()),
        ({"retry_delays": (1, 5)}, ValueError(), 0, RetryLater(delay=1)),
        ({"retry_delays": (1, 5)}, ValueError(), 7, RetryLater(delay=5)),
        ({"retry_delays": (1, 5)}, Retry(delay_level=4), 0, RetryLater(4)),
        ({"ordered": True}, ValueError(), 1000, RetryLater()),
        ({"ordered": True, "max_retries": 3}, ValueError(), 3, DeadLetter()),
        ({"ordered": True}, Reject(), 0, DeadLetter()),
        ({"broadcast": True}, ValueError(), 0, ConsumeResult.SUCCESS),
        ({"broadcast": True}, Reject(), 0, ConsumeResult.SUCCESS),
    ],
)
def test_what_becomes_of_a_message(
    options: dict[str, Any], error: BaseException | None, deliveries_before: int, outcome: Outcome
) -> None:
    def fine(body: bytes) -> None: ...

    function = fine if error is None else raising(error)
    message = received(b"x", reconsume_times=deliveries_before)
    if isinstance(outcome, (RetryLater, DeadLetter)):
        outcome = outcome._replace(error=error)  # the dead letter says why
    assert consume(RocketQ("test"), function, message, **options) == outcome


def test_a_body_that_is_not_what_was_annotated_is_dead_at_once(caplog: pytest.LogCaptureFixture) -> None:
    def function(number: int) -> None: ...

    assert isinstance(consume(RocketQ("test"), function, received(b'"text"')), DeadLetter)
    assert "dead letter queue" in caplog.text
    assert '"text"' not in caplog.text  # bodies are nobody's business


def test_a_failure_is_logged_with_its_traceback_and_a_wanted_retry_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "rocketq")
    consume(RocketQ("test"), raising(ValueError("bad")), received(b"x"))
    assert "Traceback" in caplog.text
    assert "attempt 1" in caplog.text
    caplog.clear()
    consume(RocketQ("test"), raising(Retry("later")), received(b"x"))
    assert "later" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_receiver_and_an_after_hook_that_raise_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = RocketQ("test", middleware=[Recorder("a", [], after_consume=ValueError("hook"))])

    def broken(app: RocketQ, **values: Any) -> None:
        raise ValueError("receiver")

    def function(body: bytes) -> None: ...

    with signals.received.connected_to(broken):
        assert consume(app, function, received(b"x")) == ConsumeResult.SUCCESS
    assert "hook" in caplog.text
    assert "receiver" in caplog.text


def test_a_receiver_can_listen_to_one_application(log: list[str]) -> None:
    one, two, heard = RocketQ("one"), RocketQ("two"), []

    def hear(app: RocketQ, **values: Any) -> None:
        heard.append(app.name)

    def function(body: bytes) -> None: ...

    signals.consumed.connect(hear, sender=two)
    consume(one, function, received(b"x"))
    consume(two, function, received(b"x"))
    assert heard == ["two"]


def test_a_cancelled_function_ends_its_middleware_and_stays_cancelled() -> None:
    log: list[str] = []
    app = RocketQ("test", middleware=[Recorder("a", log)])

    @app.consumer("t")
    async def forever(body: bytes) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        execution = Execution(app, app.consumers[0])
        task = asyncio.create_task(execution.arun(received(b"x")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["a.before_consume", "a.after_consume CancelledError()"]


def test_hooks_and_function_share_a_thread() -> None:
    local = threading.local()
    seen = []

    class Local(Middleware):
        def before_consume(self, consumer: Consumer, message: ReceivedMessage) -> None:
            local.value = message.message_id

    def function(message: ReceivedMessage) -> None:
        seen.append(local.value == message.message_id)

    consume(RocketQ("test", middleware=[Local()]), function, received(b"x", UNIQ_KEY="A1"))
    assert seen == [True]
