"""A small shop's tasks, as they are in many projects. Where they wait is said in one place: `SHOP_BROKER`.

export SHOP_BROKER=rocketq://127.0.0.1:9876      # was: redis://127.0.0.1:6379/0, or amqp://127.0.0.1
celery -A shop worker                            # workers, as many as you like
celery -A shop beat                              # one, for what is periodic
python shop.py                                   # a customer
pytest                                           # the project's own tests
"""

from __future__ import annotations

import os

from celery import Celery, Task, chain, group

app = Celery(
    "shop",
    broker=os.environ.get("SHOP_BROKER", "rocketq://127.0.0.1:9876"),
    backend="rpc://",
)
app.conf.update(
    task_acks_late=True,
    task_routes={"shop.remind": {"queue": "mail"}},
    beat_schedule={"stock": {"task": "shop.count_stock", "schedule": 3600.0}},
)

PRICES = {"apple": 3, "pear": 4}


class BankIsClosed(Exception):
    """It opens again."""


@app.task
def price(thing: str, number: int) -> int:
    return PRICES[thing] * number


@app.task(bind=True, autoretry_for=(BankIsClosed,), retry_backoff=False, default_retry_delay=1, max_retries=3)
def charge(self: Task, amount: int, closed_for: int = 0) -> str:
    """Pays at the second attempt when the bank was closed at the first."""
    if self.request.retries < closed_for:
        raise BankIsClosed(f"attempt {self.request.retries + 1}")
    return f"{amount} paid"


@app.task
def remind(customer: str) -> str:
    return f"dear {customer}"


@app.task
def count_stock() -> int:
    return len(PRICES)


def order(thing: str, number: int, closed_for: int = 0):
    """Price it, then charge that."""
    return chain(price.s(thing, number), charge.s(closed_for=closed_for)).apply_async()


if __name__ == "__main__":
    print(order("apple", 3).get(timeout=30))
    print(order("pear", 2, closed_for=1).get(timeout=30))
    print(group(price.s("apple", n) for n in range(5))().get(timeout=30))
    print(remind.apply_async(("ada",), countdown=2).get(timeout=30))
