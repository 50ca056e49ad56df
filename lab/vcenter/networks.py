"""Networks as the API tells them: standard ones, and port groups of the lab's one distributed switch."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from lab.esx.api import Network, State
from lab.vcenter.cards import network_reference
from lab.vcenter.nodes import Node
from lab.vcenter.vms import entity_properties

SWITCH_MOREF = "dvs-9"
SWITCH = vim.dvs.VmwareDistributedVirtualSwitch(SWITCH_MOREF)


def children(state: State) -> list[Any]:
    """What the datacentre's network folder holds."""
    switches = [SWITCH] if any(each.switch for each in state.networks) else []
    return [*(network_reference(each.moref) for each in state.networks), *switches]


def network_node(network: Network, state: State, vms: list[Any]) -> Node:
    """A `Network`, or a `DistributedVirtualPortgroup`."""
    reference = network_reference(network.moref)
    builders = {
        **entity_properties(network.name, vim.Folder(state.datacenter.network_folder)),
        "summary": lambda: vim.Network.Summary(
            network=reference, name=network.name, accessible=True, ipPoolName=""
        ),
        "host": lambda: [vim.HostSystem(each.moref) for each in state.hosts],
        "vm": lambda: vms,
    }
    if network.switch:
        builders["key"] = lambda: network.moref
        builders["config"] = lambda: vim.dvs.DistributedVirtualPortgroup.ConfigInfo(
            key=network.moref,
            name=network.name,
            numPorts=8,
            distributedVirtualSwitch=SWITCH,
            type="earlyBinding",
            policy=vim.dvs.DistributedVirtualPortgroup.PortgroupPolicy(
                blockOverrideAllowed=True,
                shapingOverrideAllowed=False,
                vendorConfigOverrideAllowed=False,
                livePortMovingAllowed=False,
                portConfigResetAtDisconnect=True,
            ),
            configVersion="0",
            uplink=False,
        )
    return Node(reference, builders)


def switch_node(state: State) -> Node:
    """The distributed switch of the port groups."""
    portgroups = [each for each in state.networks if each.switch]
    builders = {
        **entity_properties("dvSwitch", vim.Folder(state.datacenter.network_folder)),
        "uuid": lambda: portgroups[0].switch,
        "portgroup": lambda: [network_reference(each.moref) for each in portgroups],
    }
    return Node(SWITCH, builders)
