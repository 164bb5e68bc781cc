"""Writes docs/configuration.md from the configuration records: `python docs/generate_configuration.py`."""

from __future__ import annotations

from pathlib import Path

from rocketq.config import BrokerConfig, Config, NamesrvConfig, Option

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration

Generated from `rocketq/config.py` by `python docs/generate_configuration.py`; do not edit.

Every setting can be given in four places; later ones win:

1. the default below,
2. a properties file (`rocketq broker -c broker.conf`, `rocketq server -c broker.conf`, `rocketq namesrv -c
   namesrv.conf`) with Apache RocketMQ's names, so that an existing `broker.conf` works; a key that is not listed here
   is reported with file and line, and has no effect,
3. an environment variable: `ROCKETQ_` and the name in the last column,
4. the command line: `--set brokerName=broker-a`, or an option of its own where a command has one.

A value that cannot be is an error that names file, line and key; the command ends with exit code 2. `-p` prints the
settings in effect.

`rocketq server` starts from other defaults for three of them: it listens on 127.0.0.1, the broker's name is
`broker-0`, and data is under `rocketq-data` in the current directory. There `namesrvAddr` has no effect: the broker
registers with the NameServer of the same command.

## Exit codes of `rocketq server`, `rocketq namesrv`, `rocketq broker`

| code | meaning |
|---|---|
| 0 | stopped by SIGTERM or SIGINT, everything is on disk |
| 1 | could not start; one line on stderr says why (a port that is taken, a data directory in use and by whom, …) |
| 2 | wrong usage or configuration |

A second SIGTERM or SIGINT ends the process at once, as kill -9 does.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for title, kind in (("Broker", BrokerConfig), ("NameServer", NamesrvConfig)):
        parts.append(f"\n## {title}\n\n| key | default | type | meaning | `ROCKETQ_…` |\n|---|---|---|---|---|\n")
        parts += [_row(option) for option in kind.options()]
    return "".join(parts)


def _row(option: Option) -> str:
    if option.shown is not None:
        default = option.shown
    elif option.default is None:
        default = "none"
    else:
        default = f"`{Config.text(option.default)}`"
    unit = f" ({option.unit})" if option.unit else ""
    env = option.name.upper()
    return f"| `{option.key}` | {default} | {option.type_name}{unit} | {option.doc} | `{env}` |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
