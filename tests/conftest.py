"""Makes the helper modules of this directory importable from every test; a busy machine makes no property wrong."""

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("without a deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without a deadline")
