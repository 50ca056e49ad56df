"""A VM's snapshot tree, flattened to plain nodes."""

from __future__ import annotations

from typing import Any, Final

from safehaul.errors import UnsupportedError
from safehaul.messages.inventory import SnapshotNode
from safehaul.vsphere.faults import moref
from safehaul.vsphere.names import unescape

# vSphere permits 32 in a chain, and people make trees; this bounds what a broken answer can cost.
_MAX_SNAPSHOTS: Final = 10_000


def snapshot_nodes(info: Any) -> list[SnapshotNode]:
    """All snapshots of `VirtualMachineSnapshotInfo` (None: no snapshot), parents before children."""
    nodes: list[SnapshotNode] = []
    pending: list[tuple[Any, str]] = [(tree, "") for tree in (info.rootSnapshotList if info else None) or []]
    while pending:
        tree, parent = pending.pop(0)
        if len(nodes) >= _MAX_SNAPSHOTS:
            raise UnsupportedError(f"a VM has more than {_MAX_SNAPSHOTS} snapshots: remove some")
        node = SnapshotNode(
            moref=moref(tree.snapshot),
            name=unescape(str(tree.name or "")),
            description=str(tree.description or ""),
            created=tree.createTime.isoformat() if tree.createTime else "",
            parent_moref=parent,
            state=str(tree.state or ""),
            quiesced=bool(tree.quiesced),
        )
        nodes.append(node)
        pending += [(child, node.moref) for child in tree.childSnapshotList or []]
    return nodes
