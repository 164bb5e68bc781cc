"""Every way to send. Needs a server: `rocketq server`, then `python examples/producer.py`."""

from __future__ import annotations

from dataclasses import dataclass

from rocketq import RocketQ

app = RocketQ("example-producer")


@dataclass
class Order:
    number: int
    customer: str
    total: float


def main() -> None:
    print(app.send("orders", b"bytes as they are"))
    print(app.send("orders", "text"))
    print(app.send("orders", {"number": 1}, tag="new"))
    order = Order(2, "ada", 12.5)
    # With a key: same key, same queue, same order; and `rocketq` and other tools find the message by it.
    print(app.send("orders", order, tag="new", key=order.customer, keys=["order-2"]))
    # A selector chooses the queue itself.
    print(app.send("orders", order, selector=lambda queues, message, key: queues[0]))
    # Level 3 of the broker's delays: 10 seconds from now.
    print(app.send("orders", order, tag="reminder", delay_level=3, properties={"channel": "mail"}))
    app.close()


if __name__ == "__main__":
    main()
