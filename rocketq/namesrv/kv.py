"""The NameServer's key-value configuration: namespaces of keys, kept in ``kvConfig.json``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rocketq.store.configfile import load_table, save_json
from rocketq.store.files import Files

#: The namespace that holds the queue layout of ordered topics, `topic: "broker-a:4;broker-b:4"`.
ORDER_TOPIC_CONFIG = "ORDER_TOPIC_CONFIG"


class KVConfig:
    """Namespaces of keys; a change is on disk before it counts. A thread writes it, so that nobody else waits."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._table: dict[str, dict[str, str]] = {}
        self._changing = asyncio.Lock()

    def load(self) -> None:
        """Read the file, if there is one. Raises StoreError when it cannot be read."""
        load_table(self._path, self._files, self._take)

    def _take(self, saved: dict[str, Any]) -> None:
        table = saved.get("configTable", {})
        self._table = {
            str(namespace): {str(key): str(value) for key, value in entries.items()}
            for namespace, entries in table.items()
        }

    def get(self, namespace: str, key: str) -> str | None:
        return self._table.get(namespace, {}).get(key)

    def namespace(self, namespace: str) -> dict[str, str] | None:
        """All keys of a namespace; None when it was never written to."""
        return self._table.get(namespace)

    async def put(self, namespace: str, key: str, value: str) -> None:
        """Raises StoreError when the change cannot be stored; then it does not count."""
        async with self._changing:
            entries = {**self._table.get(namespace, {}), key: value}
            await self._store({**self._table, namespace: entries})

    async def delete(self, namespace: str, key: str) -> None:
        """Forget a key; nothing happens when there is none. Raises StoreError as :meth:`put`."""
        async with self._changing:
            entries = self._table.get(namespace, {})
            if key in entries:
                left = {name: value for name, value in entries.items() if name != key}
                await self._store({**self._table, namespace: left})

    async def _store(self, table: dict[str, dict[str, str]]) -> None:
        await asyncio.to_thread(save_json, self._path, {"configTable": table}, self._files)
        self._table = table
