"""Every worker process gets every message: here, to forget what it has cached.

rocketq worker -A examples/broadcast.py --embedded --processes 2
ROCKETQ_NAMESRV=127.0.0.1:… python examples/broadcast.py
"""

from __future__ import annotations

import os

from rocketq import RocketQ

app = RocketQ("prices")
cache = {"apple": 3, "pear": 4}


@app.consumer("price-changed", broadcast=True)
def forget(product: str) -> None:
    cache.pop(product, None)
    print(f"process {os.getpid()} forgot {product}, still knows {sorted(cache)}", flush=True)


if __name__ == "__main__":
    print(app.send("price-changed", "apple"))
    app.close()
