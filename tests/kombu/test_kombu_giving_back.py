"""What a consumer that stops had and did not settle: somebody else gets it at once, as it was."""

from __future__ import annotations

import kombu
from kombu_kit import consuming, publish, turn_until
from servers import ServerProcess

#: More often than a message may fail.
ROUNDS = 20


def test_what_is_given_back_keeps_its_priority_and_is_no_failure(server: ServerProcess) -> None:
    queue = kombu.Queue("giving-back", routing_key="giving-back", queue_arguments={"x-max-priority": 10})
    with kombu.Connection(f"rocketq://{server.namesrv}") as connection:
        for priority in (1, 9, 5):
            publish(connection, queue, priority, priority=priority)
        for number in range(ROUNDS):
            with consuming(connection, queue, ack=False) as got:
                assert turn_until(connection, lambda: len(got) == 3), (number, got)
                assert {message.delivery_info["redelivered"] for _, message in got} == {number > 0}
        publish(connection, queue, 7, priority=7)
        with consuming(connection, queue, prefetch=1) as got:
            assert turn_until(connection, lambda: len(got) == 4)
            assert [body for body, _ in got] == [9, 7, 5, 1]
