"""How often a transport talks to its broker: what can leave together does."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import kombu
import pytest
from kombu.asynchronous.hub import Hub
from kombu_kit import consuming, publish, turn_until
from servers import ServerProcess, wait_until

from rocketq.client.admin import Admin
from rocketq.client.sync_producer import Producer
from rocketq.errors import RequestTimeout
from rocketq.message import ReceivedMessage
from rocketq.record import CorruptRecord
from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import RequestCode
from rocketq.remoting.command import Command
from rocketq_kombu import channel, publishing
from rocketq_kombu.engine import Engine
from rocketq_kombu.eta import waiting
from rocketq_kombu.names import topic_of
from rocketq_kombu.registry import Registry
from rocketq_kombu.sources import WorkSource

NUMBER = 64


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often a transport asked for what."""
    asked: Counter[int] = Counter()
    send = Engine.send

    def count(self: Engine, address: str, code: int, *rest: Any, **options: Any) -> None:
        asked[int(code)] += 1
        send(self, address, code, *rest, **options)

    monkeypatch.setattr(Engine, "send", count)
    return asked


def acknowledge_all(connection: kombu.Connection, got: list[tuple[Any, Any]], hub: Hub) -> None:
    """As Celery's pool takes them, one by one."""
    for number in range(NUMBER):
        assert turn_until(connection, lambda: len(got) > number, hub=hub)  # noqa: B023
        got[number][1].ack()
        hub.run_once()
    keepers = [each.keeper for each in connection.transport.channels]
    assert turn_until(connection, lambda: not any(keeper.waiting for keeper in keepers), hub=hub)


def assert_empty(url: str, queue: str) -> None:
    with kombu.Connection(url) as connection, connection.channel() as rest:
        assert rest.queue_declare(queue=queue, passive=True).message_count == 0
        assert rest.basic_get(queue) is None


def test_acknowledgements_of_short_tasks_leave_together_with_the_request_for_more(
    url: str, asked: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_GATHER", 0.05)  # a busy machine takes longer for each than the usual 2 ms
    queue = kombu.Queue("together", routing_key="together")
    hub = Hub()
    with kombu.Connection(url) as connection:
        publish(connection, queue, *range(NUMBER))
        with consuming(connection, queue, prefetch=8, ack=False) as got:
            connection.register_with_event_loop(hub)
            acknowledge_all(connection, got, hub)
            lanes = {link.lane for link in connection.transport.engine._links.values()} - {
                connection.transport.watch
            }
        acknowledged = asked[RequestCode.ACK_MESSAGE] + asked[RequestCode.BATCH_ACK_MESSAGE]
        assert 0 < acknowledged <= NUMBER // 2
        assert asked[RequestCode.POP_MESSAGE] <= NUMBER // 2
        assert len(lanes) == 1, "one connection carries both"
    hub.close()
    assert_empty(url, "together")


def test_little_is_not_acknowledged_with_every_request(
    url: str, asked: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_GATHER", 0.5)  # a busy machine takes longer for each than the usual 2 ms
    queue = kombu.Queue("little", routing_key="little")
    hub = Hub()
    with kombu.Connection(url) as connection:
        publish(connection, queue, *range(NUMBER))
        with consuming(connection, queue, prefetch=4, ack=False) as got:
            connection.register_with_event_loop(hub)
            acknowledge_all(connection, got, hub)
        acknowledged = asked[RequestCode.ACK_MESSAGE] + asked[RequestCode.BATCH_ACK_MESSAGE]
        assert 0 < acknowledged <= asked[RequestCode.POP_MESSAGE] // 2
    hub.close()
    assert_empty(url, "little")


def test_the_next_messages_are_asked_for_while_others_are_still_to_come(url: str, asked: Counter[int]) -> None:
    queue = kombu.Queue("ahead", routing_key="ahead")
    hub = Hub()
    with kombu.Connection(url) as connection:
        publish(connection, queue, 1)
        with consuming(connection, queue, prefetch=2, ack=False) as got:
            connection.register_with_event_loop(hub)
            assert turn_until(connection, lambda: got and asked[RequestCode.POP_MESSAGE] == 2, hub=hub)
            got[0][1].ack()  # there is room for one more than was asked for, and nothing that would be answered
            assert turn_until(connection, lambda: asked[RequestCode.POP_MESSAGE] == 3, hub=hub)
            publish(connection, queue, 2, 3)
            assert turn_until(connection, lambda: len(got) == 3, hub=hub)
        assert asked[RequestCode.POP_MESSAGE] == 3, "there is no room"
    hub.close()


def test_one_that_waited_for_a_renewal_is_sent_when_its_channel_is_closed(url: str, asked: Counter[int]) -> None:
    queue = kombu.Queue("closed", routing_key="closed")
    hub = Hub()
    with kombu.Connection(url) as connection:
        publish(connection, queue, 1)
        with consuming(connection, queue, prefetch=8, ack=False) as got:
            connection.register_with_event_loop(hub)
            assert turn_until(connection, lambda: got, hub=hub)
            message = got[0][1]
            message.lease.busy = True
            message.ack()
        assert not asked[RequestCode.ACK_MESSAGE]
        message.lease.busy = False
        message.lease.settled()
        assert turn_until(connection, lambda: asked[RequestCode.ACK_MESSAGE], hub=hub)
    hub.close()


def test_what_is_put_back_is_confirmed_always(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored may be lost otherwise: it is acknowledged next."""
    queue = kombu.Queue("back", routing_key="back")
    with kombu.Connection(url, transport_options={"confirm_publish": False}) as connection:
        publish(connection, queue, "rejected")
        with consuming(connection, queue, ack=False) as got:
            assert turn_until(connection, lambda: got)
            monkeypatch.setattr(Producer, "send_oneway", lambda *_, **__: pytest.fail("not confirmed"))
            got[0][1].reject(requeue=True)
            assert turn_until(connection, lambda: len(got) == 2)
            got[1][1].ack()


@pytest.mark.parametrize(("code", "kept"), [(RequestCode.ACK_MESSAGE, True), (RequestCode.POP_MESSAGE, False)])
def test_a_connection_is_kept_for_messages_that_may_still_come_unless_others_did_not(
    code: int, kept: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = Engine()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        answers: list[object] = []
        engine.send(address, RequestCode.POP_MESSAGE, timeout=60, done=lambda _: None, lane="lane", wait=True)
        engine.send(address, code, timeout=0.05, done=answers.append, lane="lane")
        wait_until(lambda: engine.turn(0.1) or answers, 10, "it is late")
        assert isinstance(answers[0], RequestTimeout)
        assert ((address, "lane") in engine._links) is kept
        assert not engine.answers(address, "lane")
        engine.close()


def test_one_that_is_not_to_be_confirmed_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = kombu.Queue("unconfirmed", routing_key="unconfirmed")
    with kombu.Connection(url, transport_options={"confirm_publish": False}) as connection:
        publish(connection, queue, "first")
        answered: list[int] = []
        call = BlockingClient.call

        def note(self: BlockingClient, address: str, code: int, *rest: Any, **options: Any) -> Any:
            answered.append(int(code))
            return call(self, address, code, *rest, **options)

        monkeypatch.setattr(BlockingClient, "call", note)
        publish(connection, queue, *range(20))
        assert RequestCode.SEND_MESSAGE_V2 not in answered
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: len(got) == 21)
        assert {body for body, _ in got} == {"first", *range(20)}


def test_what_waits_for_its_eta_is_confirmed_always(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = kombu.Queue("later", routing_key="later")
    with kombu.Connection(url, transport_options={"confirm_publish": False}) as connection:
        sent: list[str | None] = []
        producer = connection.transport.cluster.producer
        send = producer.send
        monkeypatch.setattr(
            producer, "send", lambda message, **more: sent.append(message.tag) or send(message, **more)
        )
        headers = {"eta": "2036-01-01T00:00:00+00:00", "task": "far", "id": "1"}
        publish(connection, queue, "far", headers=headers)
        publish(connection, queue, "near", headers={"task": "near", "id": "2"})
        assert sent == ["far"]


def test_a_task_leaves_its_broker_as_long_before_its_eta_as_it_is_on_its_way(url: str) -> None:
    queue = kombu.Queue("lead", routing_key="lead")
    with kombu.Connection(url) as connection:
        publish(connection, queue, "far", headers={"eta": "2036-01-01T00:00:00+00:00", "task": "far", "id": "1"})
        (message,) = waiting(connection, "lead")
    due = datetime(2036, 1, 1, tzinfo=timezone.utc).timestamp() * 1000
    assert int(message.properties["TIMER_OUT_MS"]) + 1 == due - publishing.LEAD  # brokers round down


def test_a_broken_connection_loses_nothing_that_can_still_be_sent(url: str, server: ServerProcess) -> None:
    """Without confirmation, too: what cannot leave is sent again, and confirmed."""
    queue = kombu.Queue("broken", routing_key="broken")
    with kombu.Connection(url, transport_options={"confirm_publish": False}) as connection:
        publish(connection, queue, "before")
        producer = connection.transport.cluster.producer
        for peer in producer._remoting._peers.values():
            peer.link.close("cut by the test")
        publish(connection, queue, "after")
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: len(got) == 2)
        assert {body for body, _ in got} == {"before", "after"}


@pytest.mark.parametrize("patience", [30.0, 0.05])
def test_a_worker_in_the_process_of_a_publisher_lets_it_go_on_first(
    url: str, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Here the message is there before its publisher has asked NameServers for what it needs next."""
    monkeypatch.setattr(publishing, "PATIENCE", patience)
    queue = kombu.Queue("goes_on", routing_key="goes_on")
    arrived, delivered = threading.Event(), threading.Event()
    take = WorkSource.take

    def slow(self: Registry) -> None:
        assert arrived.wait(30)
        too_soon.append(delivered.wait(0.1 if patience > 1 else 30))

    def taken(self: WorkSource, answer: Command, address: str) -> bool:
        arrived.set()
        return take(self, answer, address)

    too_soon: list[bool] = []
    with kombu.Connection(url) as connection, kombu.Connection(url) as other:
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: connection.transport.engine._links)
            monkeypatch.setattr(Registry, "look_ahead", slow)
            monkeypatch.setattr(WorkSource, "take", taken)
            publisher = threading.Thread(
                target=publish, args=(other, queue, 1), kwargs={"correlation_id": "task-1"}
            )
            publisher.start()

            def seen() -> bool:
                if got:
                    delivered.set()
                return bool(got)

            assert turn_until(connection, seen)
            publisher.join(30)
        assert too_soon == [patience < 1]


@pytest.mark.parametrize("under_a_hub", [True, False])
def test_a_message_that_cannot_be_read_is_a_dead_letter_and_others_come(
    url: str, server: ServerProcess, under_a_hub: bool
) -> None:
    queue = kombu.Queue("unreadable", routing_key="unreadable")
    with kombu.Connection(url) as connection:
        topic = topic_of(connection.transport.virtual_host, queue.name)
        publish(connection, queue, "before")
        client = BlockingClient()
        fields = {"producerGroup": "P", "topic": topic, "defaultTopic": "TBW102", "defaultTopicQueueNums": "1"}
        fields |= {"queueId": "0", "bornTimestamp": "0", "flag": "0"}
        for body, sys_flag in ((b"not zlib", "1"), (b"not JSON", "0")):
            answer = client.call(server.broker, RequestCode.SEND_MESSAGE, {**fields, "sysFlag": sys_flag}, body)
            assert answer.code == 0
        client.close()
        publish(connection, queue, "behind")
        hub = Hub() if under_a_hub else None
        if hub is not None:
            connection.register_with_event_loop(hub)
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: len(got) == 2, hub=hub)
        assert [body for body, _ in got] == ["before", "behind"]
    dead = f"%DLQ%{topic}"
    with Admin(server.namesrv) as admin:
        wait_until(lambda: dead in admin.topics(), what="the topic of the dead letters")
        (place,) = admin.topic_status(dead).values()
    assert place.max_offset == 2


def test_a_message_whose_properties_cannot_be_read_does_not_keep_others_from_coming(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = channel.let_publisher_go_on

    def damaged(message: ReceivedMessage, since: float) -> None:
        if b"spoilt" in message.body:
            raise CorruptRecord("its properties are not UTF-8")
        read(message, since)

    monkeypatch.setattr(channel, "let_publisher_go_on", damaged)
    queue = kombu.Queue("damaged", routing_key="damaged")
    with kombu.Connection(url) as connection:
        publish(connection, queue, "before", "spoilt", "behind")
        with consuming(connection, queue) as got:
            assert turn_until(connection, lambda: len(got) == 2)
        assert [body for body, _ in got] == ["before", "behind"]
        with connection.channel() as rest:
            assert rest.queue_declare(queue="damaged", passive=True).message_count == 0
