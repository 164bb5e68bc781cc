"""Producers and consumers as a user has them: one Python process with a client library. One workload per run.

    python benchmarks/clients.py rocketq send-pipelined --namesrv 127.0.0.1:9876 --topic Bench --seconds 5

Prints one line of JSON. Every library gets its natural way of going fast, and the same guarantee: a message counts
when the server has confirmed it, a consumed one when it was acknowledged (for RocketMQ: its offset is committed).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Callable

WINDOW = 256  # messages in flight of the pipelined workloads, and the prefetch of the consumers
POPS = WINDOW // 32  # as many messages, 32 at a time


class Clock:
    """Counts what was confirmed until the time, or the wanted number, is reached."""

    def __init__(self, seconds: float, wanted: int) -> None:
        self.began = time.perf_counter()
        self.ends = self.began + seconds if not wanted else float("inf")
        self.wanted = wanted or 1 << 62
        self.messages = 0
        self.last = self.began
        self.cpu_began = cpu_seconds()

    def goes_on(self) -> bool:
        return self.messages < self.wanted and time.perf_counter() < self.ends

    def count(self, messages: int = 1) -> None:
        self.messages += messages
        self.last = time.perf_counter()

    def result(self) -> dict[str, float]:
        used = cpu_seconds()
        return {
            "messages": self.messages,
            "seconds": self.last - self.began,
            "rate": self.messages / max(self.last - self.began, 1e-9),
            "cpu_seconds": used,
            "cpu_seconds_measured": used - self.cpu_began,
        }


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- RocketMQ: the same client against both brokers ----


def rocketq_send_pipelined(options: argparse.Namespace) -> Clock:
    """WINDOW coroutines that send and await, as a web service's handlers do."""
    from rocketq.client import AsyncProducer
    from rocketq.message import Message

    async def main() -> Clock:
        async with AsyncProducer(
            "bench_producer", options.namesrv, **({"linger_ms": 1} if options.batched else {})
        ) as producer:
            await producer.send(Message(options.topic, options.body))
            clock = Clock(options.seconds, options.count)

            async def handler() -> None:
                while clock.goes_on():
                    await producer.send(Message(options.topic, options.body))
                    clock.count()

            await asyncio.gather(*(handler() for _ in range(WINDOW)))
            return clock

    return run_loop(main)


def rocketq_send_batched(options: argparse.Namespace) -> Clock:
    """The same with automatic batching switched on."""
    options.batched = True
    return rocketq_send_pipelined(options)


def rocketq_send_one(options: argparse.Namespace) -> Clock:
    from rocketq.client import Producer
    from rocketq.message import Message

    with Producer("bench_producer", options.namesrv) as producer:
        producer.send(Message(options.topic, options.body))
        clock = Clock(options.seconds, options.count)
        while clock.goes_on():
            producer.send(Message(options.topic, options.body))
            clock.count()
    return clock


def rocketq_consume(options: argparse.Namespace) -> Clock:
    from rocketq.client import ConsumeResult, PushConsumer
    from rocketq.message import ReceivedMessage

    async def main() -> Clock:
        consumer = PushConsumer(options.group, options.namesrv, from_where="FIRST", batch=32)
        done = asyncio.Event()
        clock = Clock(options.seconds, options.count)

        async def handler(messages: list[ReceivedMessage]) -> ConsumeResult:
            if not clock.messages:  # joining the group is not consumption
                clock.began = time.perf_counter()
            clock.count(len(messages))
            if clock.messages >= clock.wanted:
                done.set()
            return ConsumeResult.SUCCESS

        consumer.subscribe(options.topic, "*")
        consumer.handler = handler
        await consumer.start()
        await asyncio.wait_for(done.wait(), 120)
        await consumer.close()
        return clock

    return run_loop(main)


def rocketq_pop(options: argparse.Namespace) -> Clock:
    """POPS coroutines, each of which pops and acknowledges the whole answer with one request."""
    from rocketq.client import AsyncProducer
    from rocketq.client.pop_calls import MOST_AT_ONCE, OLDEST, PopCalls, batch_ack_request, pop_request, read_pop
    from rocketq.remoting.codes import ResponseCode

    async def main() -> Clock:
        group, topic = options.group, options.topic
        async with AsyncProducer("bench_producer", options.namesrv) as producer:
            broker = (await producer.queues(topic))[0].broker_name
            calls = PopCalls(producer.instance, group)
            clock = Clock(options.seconds, options.count)

            async def worker() -> None:
                while clock.goes_on():
                    request = pop_request(
                        group,
                        topic,
                        broker,
                        count=MOST_AT_ONCE,
                        lease_ms=60_000,
                        poll_ms=500,
                        now_ms=time.time_ns() // 1_000_000,
                        init_mode=OLDEST,
                    )
                    answer = await (await calls.begin(broker, request, 10))
                    popped = read_pop(answer, group, topic, broker, broker)
                    if not popped.messages:
                        continue
                    acks = batch_ack_request(broker, group, popped.receipts)
                    answer = await (await calls.begin(broker, acks, 10))
                    if answer.code != ResponseCode.SUCCESS:
                        raise RuntimeError(f"acknowledgements were answered with {answer.code}: {answer.remark}")
                    clock.count(len(popped.messages))

            await asyncio.gather(*(worker() for _ in range(POPS)))
            return clock

    return run_loop(main)


def run_loop(main: Callable[[], object]) -> Clock:
    import uvloop

    result: Clock = uvloop.run(main())  # type: ignore[arg-type, assignment]
    return result


# ---- Redis Streams ----


def redis_send_pipelined(options: argparse.Namespace) -> Clock:
    import redis

    client = redis.Redis(port=options.port, protocol=2)
    clock = Clock(options.seconds, options.count)
    while clock.goes_on():
        pipeline = client.pipeline(transaction=False)
        for _ in range(WINDOW):
            pipeline.xadd(options.topic, {b"body": options.body})
        clock.count(len(pipeline.execute()))
    return clock


def redis_send_one(options: argparse.Namespace) -> Clock:
    import redis

    client = redis.Redis(port=options.port, protocol=2)
    clock = Clock(options.seconds, options.count)
    while clock.goes_on():
        client.xadd(options.topic, {b"body": options.body})
        clock.count()
    return clock


def redis_consume(options: argparse.Namespace) -> Clock:
    import redis

    client = redis.Redis(port=options.port, protocol=2)
    client.xgroup_create(options.topic, options.group, "0")
    clock = Clock(options.seconds, options.count)
    while clock.goes_on():
        ((_, entries),) = client.xreadgroup(options.group, "one", {options.topic: ">"}, count=WINDOW)
        client.xack(options.topic, options.group, *(entry[0] for entry in entries))
        clock.count(len(entries))
    return clock


# ---- RabbitMQ, with py-amqp ----


def rabbitmq_channel(options: argparse.Namespace) -> tuple[object, object]:
    import amqp

    connection = amqp.Connection(f"127.0.0.1:{options.port}", "guest", "guest")
    connection.connect()
    channel = connection.channel()
    channel.queue_declare(options.topic, durable=True, auto_delete=False)
    return connection, channel


def rabbitmq_send(options: argparse.Namespace, window: int) -> Clock:
    import amqp

    connection, channel = rabbitmq_channel(options)
    confirmed = 0

    def on_ack(tag: int, multiple: bool) -> None:
        nonlocal confirmed
        confirmed = tag if multiple else max(confirmed, tag)

    channel.confirm_select()  # type: ignore[attr-defined]
    channel.events["basic_ack"].add(on_ack)  # type: ignore[attr-defined]
    clock = Clock(options.seconds, options.count)
    published = 0
    while clock.goes_on():
        for _ in range(window):
            channel._basic_publish(  # type: ignore[attr-defined]
                amqp.Message(options.body, delivery_mode=2), routing_key=options.topic
            )
        published += window
        while confirmed < published:
            connection.drain_events(timeout=10)  # type: ignore[attr-defined]
        clock.count(window)
    return clock


def rabbitmq_send_pipelined(options: argparse.Namespace) -> Clock:
    return rabbitmq_send(options, WINDOW)


def rabbitmq_send_one(options: argparse.Namespace) -> Clock:
    return rabbitmq_send(options, 1)


def rabbitmq_consume(options: argparse.Namespace) -> Clock:
    connection, channel = rabbitmq_channel(options)
    clock = Clock(options.seconds, options.count)

    def on_message(message: object) -> None:
        clock.count()
        if not clock.messages % 32 or clock.messages >= clock.wanted:
            channel.basic_ack(message.delivery_tag, multiple=True)  # type: ignore[attr-defined]

    channel.basic_qos(0, WINDOW, False)  # type: ignore[attr-defined]
    channel.basic_consume(options.topic, callback=on_message)  # type: ignore[attr-defined]
    while clock.goes_on():
        connection.drain_events(timeout=10)  # type: ignore[attr-defined]
    return clock


WORKLOADS: dict[str, dict[str, Callable[[argparse.Namespace], Clock]]] = {
    "rocketq": {
        "send-pipelined": rocketq_send_pipelined,
        "send-batched": rocketq_send_batched,
        "send-one": rocketq_send_one,
        "consume": rocketq_consume,
        "pop": rocketq_pop,
    },
    "redis": {
        "send-pipelined": redis_send_pipelined,
        "send-one": redis_send_one,
        "consume": redis_consume,
    },
    "rabbitmq": {
        "send-pipelined": rabbitmq_send_pipelined,
        "send-one": rabbitmq_send_one,
        "consume": rabbitmq_consume,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=WORKLOADS)
    parser.add_argument("workload")
    parser.add_argument("--namesrv", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--topic", default="Bench")
    parser.add_argument("--group", default="bench_consumer")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--count", type=int, default=0, help="stop after so many messages instead of by time")
    parser.set_defaults(batched=False)
    options = parser.parse_args()
    options.body = (b"abcdefghijklmnopqrstuvwxyz" * (options.size // 26 + 1))[: options.size]
    print(json.dumps(WORKLOADS[options.client][options.workload](options).result()))


if __name__ == "__main__":
    main()
