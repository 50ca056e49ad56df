"""The front's copy of the hosts' state: brought up to date before each call, by what changed since."""

from __future__ import annotations

import threading
import time

from lab.esx.api import State, Task, Vm
from lab.esx.client import HostClient, HostUnreachableError
from lab.vcenter.datastore_names import shown_vms
from lab.vcenter.inventory import Inventory, Projections

_RESTART_S = 5.0
_RETRY_S = 0.1


class Mirror:
    """Thread-safe. `inventory()` is never older than the call that asks for it (read your own writes)."""

    def __init__(self, hosts: HostClient) -> None:
        self._hosts = hosts
        self._lock = threading.Lock()
        self._projections = Projections()
        self._inventory: Inventory | None = None

    def inventory(self) -> Inventory:
        """The inventory now.

        Raises:
            HostUnreachableError: the hosts do not answer.
        """
        with self._lock:
            known = self._inventory
            state = self._read(known.state.version if known else 0)
            if known is not None and state.version < known.state.version:
                # The hosts were rebuilt from an older or a new state: what we know is worth nothing.
                known = None
                state = self._read(0)
            if known is not None and state.version == known.state.version:
                return known
            self._inventory = self._merged(known, state)
            return self._inventory

    def wait(self, version: int, timeout_s: float) -> None:
        """Return when the hosts' state is newer than `version`, at the latest after `timeout_s`.

        Hosts that do not answer look like hosts on which nothing happens.
        """
        try:
            self._hosts.wait(version, timeout_s)
        except HostUnreachableError:
            time.sleep(min(timeout_s, _RETRY_S))

    def _read(self, since: int) -> State:
        """Read the state. Hosts that are just being started again are given a moment.

        Reading twice is harmless, and a kept connection dies with every restart of the hosts.
        """
        deadline = time.monotonic() + _RESTART_S
        while True:
            try:
                return self._hosts.state(since=since)
            except HostUnreachableError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def _merged(self, known: Inventory | None, state: State) -> Inventory:
        vms: dict[str, Vm] = dict(known.vms) if known else {}
        tasks: dict[str, Task] = dict(known.tasks) if known else {}
        vms.update((each.moref, each) for each in shown_vms(state.vms, state.datastores))
        tasks.update((each.id, each) for each in state.tasks)
        vms = {moref: vms[moref] for moref in state.vm_morefs if moref in vms}
        tasks = {key: tasks[key] for key in state.task_ids if key in tasks}
        self._projections.update(state, vms)
        return Inventory(state, vms, tasks, self._projections)
