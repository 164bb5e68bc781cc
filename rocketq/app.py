"""The application object: where consumer functions are registered and messages are sent from."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, TypeVar

from rocketq import payload as payloads
from rocketq import schedule, signals
from rocketq.client import AsyncProducer, AsyncTransaction, Producer, Selector, SendResult, Transaction
from rocketq.consumers import DEFAULT_GRACE, DEFAULT_LEASE, Consumer
from rocketq.errors import ConfigError
from rocketq.message import Message
from rocketq.middleware import Chain, Middleware
from rocketq.names import check_group, check_topic
from rocketq.remoting.credentials import Credentials

__all__ = ["RocketQ", "consumer"]

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds until the tick of a worker that died comes again.
TICK_LEASE = 10.0
DEFAULT_NAMESRV = "127.0.0.1:9876"


@dataclass(frozen=True)
class _Registration:
    function: Callable[..., Any]
    topic: str
    options: Mapping[str, Any]


#: What the module-level `consumer` collected; belongs to every application of the process.
_shared: list[_Registration] = []


class RocketQ:
    """An application: a name, the NameServers, consumer functions and a producer.

    `name` is the producer group and the first part of the consumers' group names. `namesrv` is `host:port`, several
    separated by `;` (default: the environment variable ROCKETQ_NAMESRV, then NAMESRV_ADDR, then 127.0.0.1:9876).
    `middleware` wraps every send and every consumption, the first one outermost. `producer` holds options of
    `rocketq.client.AsyncProducer` and `Producer` (`retries`, `compress_from`, …); other options are about connections,
    of consumers as well (`tls`, `route_cache`, `route_refresh`, …; to a `client_id` a worker adds what makes it unique
    among its processes and graces). `access_key` and `secret_key` are the account where brokers ask for one (default:
    ROCKETQ_ACCESS_KEY and ROCKETQ_SECRET_KEY). `trace`: producers and consumers write down what they do with each
    message (see `rocketq message trace`). Nothing is connected before the first send. Raises ConfigError for an
    illegal name and for half an account.
    """

    def __init__(
        self,
        name: str,
        namesrv: str | None = None,
        *,
        middleware: Iterable[Middleware] = (),
        producer: Mapping[str, Any] | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        trace: bool | str = False,
        **connection_options: Any,
    ) -> None:
        wrong = check_group(name)
        if wrong:
            raise ConfigError(f"application name {name!r}: {wrong}")
        self.name = name
        self.namesrv = namesrv or (
            os.environ.get("ROCKETQ_NAMESRV") or os.environ.get("NAMESRV_ADDR") or DEFAULT_NAMESRV
        )
        self.middleware: list[Middleware] = list(middleware)
        self._own: list[_Registration] = []
        self._consumers: dict[str, Consumer] = {}
        self._adopted = 0
        account = Credentials.of(
            access_key or os.environ.get("ROCKETQ_ACCESS_KEY"), secret_key or os.environ.get("ROCKETQ_SECRET_KEY")
        )
        if account is not None:
            connection_options.update(access_key=account.access_key, secret_key=account.secret_key)
        self.connection_options = connection_options
        self.trace = trace
        self._producer_options = {"trace": trace, **(producer or {}), **connection_options}
        self._producer: Producer | None = None
        self._lock = threading.Lock()
        self._async_producers: dict[asyncio.AbstractEventLoop, asyncio.Task[AsyncProducer]] = {}

    def __repr__(self) -> str:
        return f"<RocketQ {self.name} namesrv={self.namesrv}>"

    # consumers

    def consumer(
        self,
        topic: str,
        tag: str = "*",
        *,
        sql: str | None = None,
        group: str | None = None,
        ordered: bool = False,
        broadcast: bool = False,
        concurrency: int | None = None,
        max_retries: int | None = None,
        from_where: str | int = "LAST",
        mode: str = "auto",
        lease: float = DEFAULT_LEASE,
        grace: float = DEFAULT_GRACE,
        retry_delays: Sequence[float] = (),
    ) -> Callable[[F], F]:
        """Register a function, sync or async, for the messages of `topic`. The function itself is returned unchanged.

        `tag`: `*`, a tag, or several as `"a || b"`.
        `sql`: instead of `tag`, a SQL92 expression over properties, `"amount > 3 AND TAGS = 'paid'"`; see `Sql`.
        `group`: who shares the work and the position in the topic; every process with this group gets a part of the
        messages. Default: `<app name>-<function name>`. One function a group, or ConfigError.
        `ordered`: one message at a time per queue, in queue order; a failing message is tried again before the next.
        `broadcast`: every process gets every message; no retries, a failed message is logged and dropped. Where a
        process is in the topic is kept in a file on its host (`~/.rocketmq_offsets`), one for each of `--processes`.
        `concurrency`: functions running at once in this process (default 20; ordered: one a queue at most).
        `max_retries`: deliveries after the first before the dead letter queue (default 16; ordered: no end).
        `from_where`: where a group without a stored position begins: `"LAST"` (what arrives from now on; RocketMQ
        begins small young queues at their start even so), `"FIRST"`, or a time in ms since the epoch.
        `mode`: `"pop"`: brokers lease single messages to whichever process asks, so one that joins, leaves or hangs
        holds up nobody (RocketMQ 5; not with `ordered`, `broadcast` or more than 16 retries). `"pull"`: each process
        has queues of its own. `"auto"`: pop, where the topic's brokers can and no member of the group pulls.
        `lease`: with pop, seconds until what a process held comes again when nothing is heard of it any more (default
        30); leases are renewed while a function works, however long that takes.
        `grace`: with pop, seconds until it comes again when the process has died, or all its connections were ended
        (default 5; 0: at once). One that lives connects anew within that time; where the network may keep it away for
        longer, take as many as `lease` has. Apache's brokers know the lease only. Functions with different graces do
        not share their worker's connections.
        `retry_delays`: seconds before the first, second, … further attempt, the last one for all others (default: the
        broker's 10 s, 30 s, 1 m … 2 h). With pull rounded up to the broker's delay levels; not for `ordered`.

        What the function is given is in `rocketq.payload`; what it may raise in `rocketq.consumers`.
        """
        options = {
            "tag": tag,
            "sql": sql,
            "group": group,
            "ordered": ordered,
            "broadcast": broadcast,
            "concurrency": concurrency,
            "max_retries": max_retries,
            "from_where": from_where,
            "mode": mode,
            "lease": lease,
            "grace": grace,
            "retry_delays": tuple(retry_delays),
        }

        def register(function: F) -> F:
            self._add(_Registration(function, topic, options))
            return function

        return register

    def periodic(
        self,
        *,
        cron: str | None = None,
        every: timedelta | None = None,
        tz: tzinfo | str | None = None,
        misfire: str = "once",
        group: str | None = None,
        concurrency: int | None = None,
    ) -> Callable[[F], F]:
        """Register a function, sync or async, to be called regularly: once a tick, however many workers run.

        `cron`: when, as `"*/5 * * * *"` (minute, hour, day of month, month, day of week; six fields: seconds first), by
        the clock of `tz`, a zone or its name (default: the host's local time). `every`: instead of that, an interval of
        at least a second, counted from 1970 UTC. `misfire`: what becomes of ticks that came while no worker ran:
        `"once"` (one call, late, for all of them), `"skip"` (none), or `"all"` (one call each).
        `group`: whose ticks they are (default: `<app name>-<function name>`); the topic `<group>-ticks` keeps them, and
        workers create it. `concurrency`: calls at once in this process, when one takes longer than to the next tick.

        The function has no parameter, or takes the tick: a `datetime`, or the message. One that raises is logged, and
        called again at the next tick. After a crash a tick may be repeated; docs/periodic.md says what is guaranteed.

        Raises ConfigError for a schedule that cannot be.
        """
        if (cron is None) == (every is None) or (every is not None and tz is not None):
            raise ConfigError("periodic: give either cron= (and tz=) or every=")
        when = schedule.every(every) if every is not None else schedule.cron(cron or "", tz)

        def register(function: F) -> F:
            own = group or f"{self.name}-{_name(function)}"
            options = {**_DEFAULTS, "tag": "*", "schedule": when, "misfire": misfire, "concurrency": concurrency}
            # by POP no tick is given out twice when workers come and go
            options |= {"group": own, "from_where": "FIRST", "mode": "pop", "lease": TICK_LEASE}
            self._add(_Registration(function, f"{own}-ticks", options))
            return function

        return register

    def _add(self, registration: _Registration) -> None:
        function, options = registration.function, dict(registration.options)
        name = _name(function)
        group = options.pop("group") or f"{self.name}-{name}"
        wrong = check_group(group) or check_topic(registration.topic)
        if wrong:
            raise ConfigError(f"consumer {name}: {wrong}")
        other = self._consumers.get(group)
        if other is not None:
            raise ConfigError(
                f"group {group} already belongs to {other.name} on topic {other.topic}: all members of a group have to "
                f"take the same messages, so give {name} on topic {registration.topic} a group= of its own"
            )
        self._consumers[group] = Consumer(function, registration.topic, group=group, **options)

    @property
    def consumers(self) -> list[Consumer]:
        """The registered consumers: this application's, then those of the module-level `consumer`."""
        while self._adopted < len(_shared):
            self._add(_shared[self._adopted])
            self._adopted += 1
        return list(self._consumers.values())

    # sending

    def send(
        self,
        topic: str,
        payload: object,
        *,
        tag: str | None = None,
        key: str | None = None,
        keys: Iterable[str] = (),
        selector: Selector | None = None,
        delay_level: int = 0,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        properties: Mapping[str, str] | None = None,
        timeout: float = 3.0,
    ) -> SendResult:
        """Send and wait until the broker has it. For threads; in a coroutine use `asend`.

        `payload`: bytes, str, or what JSON can hold (see `rocketq.payload`). `tag`: what consumers filter by.
        `key`: messages with the same key go to the same queue and keep their order (for `ordered` consumers), and can
        be looked up by it. `keys`: more words to look it up by. `selector(queues, message, key)` chooses the queue
        itself. `delay` (a timedelta or seconds) or `at` (a datetime; without a zone: local time): deliver it then, to
        the millisecond; the result's `recall_handle` takes it back (`producer.recall`). `delay_level` 1 to 18: the
        delays of RocketMQ 4 (1 s 5 s 10 s 30 s 1 m … 2 h). `priority` from 0: with POP the higher ones come first; not
        together with a delay or a `key`. `properties`: your own, strings.
        `timeout` in seconds, for all attempts together.

        Raises InvalidMessage, RouteNotFound, BrokerError, RemotingError; after the last two the broker may still
        have stored it.
        """
        message = build(topic, payload, tag, key, keys, delay_level, properties, delay, at, priority)
        with _Sending(self, message) as sending:
            result = sending.result = self.producer.send(message, selector=selector, key=key, timeout=timeout)
        return result

    async def asend(
        self,
        topic: str,
        payload: object,
        *,
        tag: str | None = None,
        key: str | None = None,
        keys: Iterable[str] = (),
        selector: Selector | None = None,
        delay_level: int = 0,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        properties: Mapping[str, str] | None = None,
        timeout: float = 3.0,
    ) -> SendResult:
        """`send` for coroutines. Many at once share connections and system calls."""
        message = build(topic, payload, tag, key, keys, delay_level, properties, delay, at, priority)
        with _Sending(self, message) as sending:
            producer = await self.aproducer()
            result = sending.result = await producer.send(message, selector=selector, key=key, timeout=timeout)
        return result

    @contextmanager
    def transaction(
        self,
        topic: str,
        payload: object,
        *,
        tag: str | None = None,
        key: str | None = None,
        keys: Iterable[str] = (),
        selector: Selector | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        properties: Mapping[str, str] | None = None,
        check_after: int | None = None,
        timeout: float = 3.0,
    ) -> Iterator[Transaction]:
        """Send a message that consumers get when the block ends well, and never when it raises.

        ``with app.transaction("orders", order): database.commit()``. For threads; in a coroutine use `atransaction`.
        What it gives has `commit()`, `rollback()` and `result`. Options as for `send`; a delay begins with the commit
        (Apache's brokers lose transactional messages with a delay). Should the process die in the block, a broker asks
        the function that ``RocketQ(…, producer={"check": function, "check_topics": ["orders"]})`` names: it gets the
        message and returns True to commit, False to roll back, None to be asked again. `check_after`: seconds until it
        asks, see `rocketq.client.Producer.transaction`. `before_send` and `after_send` are about the half message.

        Raises as `send`: before the block nothing is done, after it the broker may or may not have heard the end.
        """
        message = build(topic, payload, tag, key, keys, 0, properties, delay, at)
        with _Sending(self, message) as sending:
            transaction = self.producer.transaction(
                message, selector=selector, key=key, check_after=check_after, timeout=timeout
            )
            transaction.begin()
            sending.result = transaction.result
        with transaction:
            yield transaction

    @asynccontextmanager
    async def atransaction(
        self,
        topic: str,
        payload: object,
        *,
        tag: str | None = None,
        key: str | None = None,
        keys: Iterable[str] = (),
        selector: Selector | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        properties: Mapping[str, str] | None = None,
        check_after: int | None = None,
        timeout: float = 3.0,
    ) -> AsyncIterator[AsyncTransaction]:
        """`transaction` for coroutines: ``async with app.atransaction("orders", order): …``."""
        message = build(topic, payload, tag, key, keys, 0, properties, delay, at)
        with _Sending(self, message) as sending:
            producer = await self.aproducer()
            transaction = producer.transaction(
                message, selector=selector, key=key, check_after=check_after, timeout=timeout
            )
            await transaction.begin()
            sending.result = transaction.result
        async with transaction:
            yield transaction

    @property
    def producer(self) -> Producer:
        """The application's blocking producer, for what `send` does not offer (batches, oneway)."""
        if self._producer is None:
            with self._lock:
                if self._producer is None:
                    self._producer = Producer(self.name, self.namesrv, **self._producer_options)
        return self._producer

    async def aproducer(self) -> AsyncProducer:
        """The application's producer of the running event loop."""
        loop = asyncio.get_running_loop()
        task = self._async_producers.get(loop)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            for other in [other for other in self._async_producers if other.is_closed()]:
                del self._async_producers[other]  # nobody closed it, and its loop is gone
            task = self._async_producers[loop] = loop.create_task(self._start_producer())
        return await asyncio.shield(task)

    async def _start_producer(self) -> AsyncProducer:
        producer = AsyncProducer(self.name, self.namesrv, **self._producer_options)
        await producer.start()
        return producer

    def close(self) -> None:
        """Close the blocking producer; the next `send` opens a new one."""
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    async def aclose(self) -> None:
        """Close the running event loop's producer; the next `asend` opens a new one."""
        task = self._async_producers.pop(asyncio.get_running_loop(), None)
        if task is not None:
            await (await task).close()


class _Sending:
    """What middleware and signals have around one send; whoever sends puts the `result` in."""

    __slots__ = ("_app", "_chain", "_message", "result")

    def __init__(self, app: RocketQ, message: Message) -> None:
        self.result: SendResult | None = None
        self._app = app
        self._message = message
        self._chain = Chain(app.middleware) if app.middleware else None

    def __enter__(self) -> _Sending:
        app, chain, message = self._app, self._chain, self._message
        if chain is not None:
            try:
                chain.before("before_send", app, message)
            except BaseException as error:
                chain.after("after_send", app, message, None, error)
                raise
        signals.emit(signals.before_send, app, message=message)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        app, message, result = self._app, self._message, self.result
        signals.emit(signals.after_send, app, message=message, result=result, error=error)
        if self._chain is not None:
            self._chain.after("after_send", app, message, result, error)


def consumer(topic: str, tag: str = "*", **options: Any) -> Callable[[F], F]:
    """`RocketQ.consumer` for modules that do not know the application: same options, same function back.

    The function belongs to whatever application its process loads: `rocketq worker -A shop:app` runs the consumers of
    `app` and every function decorated with this in the modules that were imported. Its default group name begins with
    the name of that application.
    """

    def register(function: F) -> F:
        _shared.append(_Registration(function, topic, {"tag": tag, "group": None, **_DEFAULTS, **options}))
        return function

    unknown = options.keys() - _DEFAULTS.keys() - {"group"}
    if unknown:
        raise TypeError(f"consumer() got an unexpected option {', '.join(sorted(unknown))}")
    return register


_DEFAULTS: Mapping[str, Any] = {
    "sql": None,
    "ordered": False,
    "broadcast": False,
    "concurrency": None,
    "max_retries": None,
    "from_where": "LAST",
    "mode": "auto",
    "lease": DEFAULT_LEASE,
    "grace": DEFAULT_GRACE,
    "retry_delays": (),
}


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")


def build(
    topic: str,
    payload: object,
    tag: str | None,
    key: str | None,
    keys: Iterable[str],
    delay_level: int,
    properties: Mapping[str, str] | None,
    delay: timedelta | float | None = None,
    at: datetime | None = None,
    priority: int | None = None,
) -> Message:
    """The message that `send` sends; `key` comes first among the keys. Raises InvalidMessage."""
    words = [keys] if isinstance(keys, str) else list(keys)
    if key is not None and key not in words:
        words.insert(0, key)
    return Message(
        topic,
        payloads.encode(payload),
        tag=tag,
        keys=words,
        sharding_key=key,
        delay_level=delay_level,
        delay=delay,
        at=at,
        priority=priority,
        properties=properties,
    )


def has_shared_consumers() -> bool:
    """Whether a module-level `consumer` was used in this process."""
    return bool(_shared)
