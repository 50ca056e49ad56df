"""An access node's spool: the VM's small files between steps 9 and 10. No name from vCenter becomes a path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from activities.peers import Peers
from safehaul.messages.steps import VmRef


def spool_directory(peers: Peers, vm: VmRef) -> Path:
    """The directory of one VM in one job on this node, named by a digest of both."""
    key = hashlib.sha256(f"{vm.job_id}\0{vm.vc_guid}".encode()).hexdigest()[:32]
    return peers.spool(vm.node) / key
