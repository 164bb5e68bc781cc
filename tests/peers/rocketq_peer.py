"""Our own client on a string: the same verbs and lines as `java/Peer.java` and `go/main.go`.

python rocketq_peer.py DIRECTORY
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rocketq_pop import Pop
from rocketq_transactions import Transactions

from rocketq import (
    AsyncProducer,
    Message,
    MessageQueue,
    Producer,
    PullConsumer,
    PushConsumer,
    ReceivedMessage,
    Sql,
)
from rocketq.client import ConsumeResult, RetryLater, SendResult, by_hash
from rocketq.remoting.tls import TlsConfig

Object = dict[str, Any]
_saying = threading.Lock()


def say(line: Object) -> None:
    with _saying:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def describe_result(result: SendResult) -> Object:
    return {
        "status": result.status,
        "message_id": result.message_id,
        "offset_message_id": result.offset_message_id,
        "broker": result.queue.broker_name,
        "queue": result.queue.queue_id,
        "queue_offset": result.queue_offset,
    }


def describe(message: ReceivedMessage) -> Object:
    return {
        "topic": message.topic,
        "message_id": message.message_id,
        "body": base64.b64encode(message.body).decode(),
        "tag": message.tag,
        "keys": " ".join(message.keys),
        "queue": message.queue_id,
        "broker": message.broker_name,
        "queue_offset": message.queue_offset,
        "reconsume_times": message.reconsume_times,
        "properties": message.properties,
        "born": message.born_timestamp,
        "stored": message.store_timestamp,
        "sys_flag": message.record.sys_flag,
        "physical_offset": message.physical_offset,
    }


def new_message(topic: str, fields: Object) -> Message:
    return Message(
        topic,
        base64.b64decode(fields["body"]),
        tag=fields.get("tag") or None,
        keys=fields.get("keys", ""),
        delay_level=fields.get("delay", 0),
        properties=fields.get("properties"),
    )


class Peer:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.producers: dict[str, AsyncProducer] = {}
        self.blocking: dict[str, Producer] = {}
        self.consumers: dict[str, PushConsumer] = {}
        self.transactions = Transactions()

    async def producer(self, namesrv: str) -> AsyncProducer:
        if namesrv not in self.producers:
            self.producers[namesrv] = AsyncProducer("peer_producers", namesrv, **self.options)
            await self.producers[namesrv].start()
        return self.producers[namesrv]

    async def send(self, c: Object) -> list[Object]:
        topic, how, namesrv = c["topic"], c["how"], c["namesrv"]
        messages = [new_message(topic, fields) for fields in c["messages"]]
        if how == "sync":
            return await asyncio.to_thread(self.send_blocking, namesrv, messages, c["messages"])
        producer = await self.producer(namesrv)
        if how == "batch":
            results = await producer.send_batch(messages, timeout=10)
            joined = describe_result(results[0])
            joined["message_id"] = ",".join(result.message_id for result in results)
            joined["offset_message_id"] = ",".join(result.offset_message_id for result in results)
            return [joined]
        if how == "oneway":
            for message in messages:
                await producer.send_oneway(message)
            return []
        if how == "hash":
            keys = [fields["hash"] for fields in c["messages"]]
            return [
                describe_result(await producer.send(message, selector=by_hash, key=key, timeout=10))
                for message, key in zip(messages, keys, strict=True)
            ]
        sends = [producer.send(message, timeout=10) for message in messages]
        return [describe_result(result) for result in await asyncio.gather(*sends)]

    def send_blocking(self, namesrv: str, messages: list[Message], fields: list[Object]) -> list[Object]:
        if namesrv not in self.blocking:
            self.blocking[namesrv] = Producer("peer_producers_blocking", namesrv, **self.options)
        results = []
        for message, own in zip(messages, fields, strict=True):
            queue = MessageQueue(message.topic, own["broker"], own["queue"]) if "queue" in own else None
            results.append(describe_result(self.blocking[namesrv].send(message, queue=queue, timeout=10)))
        return results

    async def consume(self, c: Object) -> bool:
        name, failures, orderly = c["name"], c.get("fail", 0), c.get("orderly", False)

        async def handle(messages: Sequence[ReceivedMessage]) -> ConsumeResult | RetryLater:
            for message in messages:
                now = int(time.time() * 1000)
                say({**describe(message), "event": "message", "consumer": name, "now": now})
            if all(message.reconsume_times >= failures for message in messages):
                return ConsumeResult.SUCCESS
            return ConsumeResult.SUSPEND if orderly else RetryLater(1)

        consumer = PushConsumer(
            c["group"],
            c["namesrv"],
            handle,
            **self.options,
            client_id=f"{name}@{c['namesrv']}",
            max_reconsume_times=c.get("max_reconsume"),
            persist_interval=1,
            rebalance_interval=1,
            route_refresh=1,
            suspend=0.1,
            model="BROADCASTING" if c.get("broadcast") else "CLUSTERING",
            from_where="LAST" if c.get("last") else "FIRST",
            ordered=orderly,
            trace=c.get("trace", False),
        )
        consumer.subscribe(c["topic"], Sql(c["sql"]) if "sql" in c else c.get("expression", "*"))
        await consumer.start()
        self.consumers[name] = consumer
        return True

    async def request(self, c: Object) -> Object:
        """Asks with the body `text`; gives the reply. `blocking`: from code that is not asynchronous."""
        message = Message(c["topic"], c["text"].encode())
        seconds = c["within"] / 1000
        if c["blocking"]:
            with Producer("peer_asking", c["namesrv"], **self.options) as producer:
                return describe(await asyncio.to_thread(producer.request, message, timeout=seconds))
        return describe(await (await self.producer(c["namesrv"])).request(message, timeout=seconds))

    async def respond(self, c: Object) -> bool:
        """Starts a consumer that replies with the body in capitals; "stop" ends it."""
        producer = await self.producer(c["namesrv"])

        async def handle(messages: Sequence[ReceivedMessage]) -> None:
            for message in messages:
                await producer.send(message.reply(message.body.upper()))

        consumer = PushConsumer(c["group"], c["namesrv"], handle, from_where="FIRST", **self.options)
        consumer.subscribe(c["topic"])
        await consumer.start()
        self.consumers[c["name"]] = consumer
        return True

    async def stop(self, c: Object) -> bool:
        await self.consumers.pop(c["name"]).close()
        return True

    def pull_consumer(self, c: Object) -> PullConsumer:
        options: Object = {**self.options, "route_refresh": 1, "rebalance_interval": 1}
        return PullConsumer(c["group"], c["namesrv"], from_where="FIRST", auto_commit=False, **options)

    async def poll(self, c: Object) -> Object:
        """Subscribes, takes `count` messages, commits, and leaves the group."""
        consumer = self.pull_consumer(c)
        consumer.subscribe(c["topic"], Sql(c["sql"]) if "sql" in c else c.get("expression", "*"))
        async with consumer:
            found = await self.take(consumer, c["count"])
            await consumer.commit()
        return {"messages": found}

    async def lite(self, c: Object) -> Object:
        """Assigns one queue, seeks when an offset is given, polls until `count` messages are there, and commits."""
        queue = MessageQueue(c["topic"], c["broker"], c["queue"])
        async with self.pull_consumer(c) as consumer:
            await consumer.assign([queue])
            if "offset" in c:
                await consumer.seek(queue, c["offset"])
            found = await self.take(consumer, c["count"])
            await consumer.commit()
            return {"messages": found, "committed": await consumer.committed(queue)}

    async def take(self, consumer: PullConsumer, count: int) -> list[Object]:
        found: list[Object] = []
        deadline = time.monotonic() + 40
        while len(found) < count and time.monotonic() < deadline:
            found += [describe(message) for message in await consumer.poll(0.5)]
        return found

    async def run(self, c: Object) -> Any:
        verbs: dict[str, Callable[[Object], Awaitable[Any]]] = {
            "send": self.send,
            "consume": self.consume,
            "stop": self.stop,
            "poll": self.poll,
            "lite": self.lite,
            "Rpc.request": self.request,
            "Rpc.respond": self.respond,
            **self.transactions.verbs,
        }
        if c["do"].startswith("Pop."):
            verbs = Pop(await self.producer(c["namesrv"]), describe).verbs
        return await verbs[c["do"]](c)


def report_tasks() -> None:
    """Where every task waits, to stderr: what a test that waits in vain shows."""
    for task in asyncio.all_tasks():
        task.print_stack(limit=8)


async def main(variant: str) -> None:
    account = {"access_key": "shop-service", "secret_key": "secret of the shop"}
    peer = Peer({"tls": TlsConfig()} if variant == "tls" else account if variant == "acl" else {})
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, report_tasks)
    say({"event": "ready"})
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        try:
            say({"id": command["id"], "result": await peer.run(command)})
        except Exception as error:  # noqa: BLE001 - the test that asked gets it as its answer
            say({"id": command["id"], "error": f"{type(error).__name__}: {error}"})
    for consumer in peer.consumers.values():
        await consumer.close()
    for producer in peer.producers.values():
        await producer.close()
    await peer.transactions.close()
    for blocking in peer.blocking.values():
        blocking.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
