"""A row and a message, both or none. Needs a server: `rocketq server`, then `python examples/transactions.py`."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from rocketq import ReceivedMessage, RocketQ

DATABASE = Path(sys.argv[1] if len(sys.argv) > 1 else "orders.sqlite")


def connect() -> sqlite3.Connection:
    database = sqlite3.connect(DATABASE)
    database.execute("CREATE TABLE IF NOT EXISTS orders (number TEXT PRIMARY KEY, customer TEXT)")
    return database


def was_saved(message: ReceivedMessage) -> bool:
    """A broker asks when a process died before it said how a transaction ends: the database knows."""
    row = connect().execute("SELECT 1 FROM orders WHERE number = ?", (message.keys[0],)).fetchone()
    return row is not None


app = RocketQ("example-transactions", producer={"check": was_saved})


def place(number: str, customer: str) -> None:
    """Save an order, and tell others if that works. Raises sqlite3.IntegrityError for a number that is taken."""
    # Inside, the server has the message and shows it to nobody. It is committed when the block ends well.
    with app.transaction("placed", {"number": number, "customer": customer}, key=number), connect() as database:
        database.execute("INSERT INTO orders VALUES (?, ?)", (number, customer))


def main() -> None:
    for number, customer in ("1", "ada"), ("2", "bob"), ("1", "eve"):
        try:
            place(number, customer)
            print(f"order {number} of {customer}: saved, and everybody knows")
        except sqlite3.IntegrityError as error:
            print(f"order {number} of {customer}: {error}, and nobody heard of it")
    app.close()


if __name__ == "__main__":
    main()
