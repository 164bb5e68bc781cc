"""Functions by the clock: each tick is called once, however many workers run.

rocketq worker -A examples/periodic.py --embedded --processes 2
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from rocketq import RocketQ

app = RocketQ("clock")


@app.periodic(every=timedelta(seconds=2))
def tick(at: datetime) -> None:
    print(f"tick of {at:%H:%M:%S} in process {os.getpid()}", flush=True)


@app.periodic(cron="0 9 * * MON-FRI", tz="Europe/Berlin")
async def good_morning() -> None:
    print("good morning, Berlin", flush=True)
