"""`python -m benchmarks …`: the benchmark of the server and the client; `python -m benchmarks celery …`: Celery's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if sys.argv[1:2] == ["celery"]:
    del sys.argv[1]
    from celery_run import main
else:
    from run import main

main()
