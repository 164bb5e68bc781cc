"""How often a transport talks to its broker: what can leave together does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import kombu
import pytest
from kombu.asynchronous.hub import Hub
from kombu_kit import consuming, publish, turn_until
from servers import ServerProcess

from rocketq.remoting.blocking import BlockingClient
from rocketq.remoting.codes import RequestCode

NUMBER = 64


def test_acknowledgements_of_short_tasks_leave_together_with_the_request_for_more(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = kombu.Queue("together", routing_key="together")
    hub = Hub()
    with kombu.Connection(url) as connection:
        publish(connection, queue, *range(NUMBER))
        asked: Counter[int] = Counter()
        send = connection.transport.engine.send

        def count(address: str, code: int, *rest: Any, **options: Any) -> None:
            asked[int(code)] += 1
            send(address, code, *rest, **options)

        monkeypatch.setattr(connection.transport.engine, "send", count)
        with consuming(connection, queue, prefetch=8, ack=False) as got:
            connection.register_with_event_loop(hub)
            for number in range(NUMBER):  # as Celery's pool takes them, one by one
                assert turn_until(connection, lambda: len(got) > number, hub=hub)  # noqa: B023
                got[number][1].ack()
                hub.run_once()
            keepers = [each.keeper for each in connection.transport.channels]
            assert turn_until(connection, lambda: not any(keeper.waiting for keeper in keepers), hub=hub)
            lanes = {link.lane for link in connection.transport.engine._links.values()}
        acknowledged = asked[RequestCode.ACK_MESSAGE] + asked[RequestCode.BATCH_ACK_MESSAGE]
        assert 0 < acknowledged <= NUMBER // 2
        assert asked[RequestCode.POP_MESSAGE] <= NUMBER // 2
        assert len(lanes) == 1, "one connection carries both"
    hub.close()
    with kombu.Connection(url) as connection, connection.channel() as channel:
        assert channel.queue_declare(queue="together", passive=True).message_count == 0
        assert channel.basic_get("together") is None


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
