"""`python -m rocketq`: the same as the `rocketq` command."""

from rocketq.cli.main import main

main(prog_name="rocketq")
