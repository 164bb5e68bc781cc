"""One account's bookings in order, many accounts at once.

rocketq worker -A examples/ordered.py --embedded      # prints the server's address
ROCKETQ_NAMESRV=127.0.0.1:… python examples/ordered.py
"""

from __future__ import annotations

from dataclasses import dataclass

from rocketq import Reject, RocketQ

app = RocketQ("bank")
balances: dict[str, int] = {}


@dataclass
class Booking:
    account: str
    number: int
    amount: int


@app.consumer("bookings", ordered=True, max_retries=3)
def book(booking: Booking) -> None:
    """An exception here is tried again before the account's next booking; after three times it goes to the DLQ."""
    if booking.amount == 0:
        raise Reject("nothing to book")  # straight to the DLQ
    balances[booking.account] = balances.get(booking.account, 0) + booking.amount
    line = f"{booking.account} #{booking.number}: {booking.amount:+} = {balances[booking.account]}\n"
    print(line, end="", flush=True)  # in one piece: the queues' threads print at the same time


if __name__ == "__main__":
    for number in range(1, 6):
        for account in ("ada", "bob", "eve"):
            app.send("bookings", Booking(account, number, number * 10), key=account)
    app.close()
