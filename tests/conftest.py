"""Makes the helper modules of this directory importable from every test; a busy machine makes no property wrong.

Properties are tried with the same examples in each run, so that a change fails for what it changes. Others are tried
with `pytest --hypothesis-profile=explore tests/app tests/broker …`: what that finds becomes a case of a table.
"""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
_ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _ANY, derandomize=True)
settings.register_profile("explore", _ANY, max_examples=1000)
settings.load_profile("same")
