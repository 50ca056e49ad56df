"""Goal: MAC addresses and networks of the lab's VMs behave as vSphere's do when a VM is registered or powered on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.esx.api import Settings, Vm
from lab.esx.home import parse_lines, render_lines
from lab.esx.hosts import Hosts
from lab.site import DatastoreSpec, Site, VmSpec, build


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    site = Site(
        networks=["VM Network", "Isolated"],
        distributed_networks=["dv-prod"],
        datastores=[DatastoreSpec(name="gold", type="NFS")],
        vms=[VmSpec(name="one", datastore="gold", power_state="poweredOff")],
        settings=Settings(default_duration_s=0.0),
    )
    build(site, tmp_path / "lab")
    running = Hosts(tmp_path / "lab")
    running.start()
    yield running
    running.stop()


def registered(hosts: Hosts, name: str, **changes: str) -> Vm:
    """A copy of the VM `one` whose .vmx says other things of its card; "" takes a line out."""
    home = hosts.world.local("[gold] one")
    target = home.with_name(name)
    shutil.copytree(home, target)
    wanted = {f"ethernet0.{key}": value for key, value in changes.items()}
    values = parse_lines(target / "one.vmx") | {"displayName": name} | wanted
    (target / "one.vmx").write_bytes(render_lines(values))
    started = hosts.register(
        f"[gold] {name}/one.vmx",
        name=None,
        folder=None,
        resource_pool=None,
        host=None,
        as_template=False,
        user="t",
    )
    assert hosts.wait_task(started.task, 20).state == "success"
    return hosts.world.vm(name)


def test_an_assigned_address_that_another_vm_has_is_given_up_for_a_new_one(hosts: Hosts) -> None:
    original = hosts.world.vm("one").hardware.nics[0].mac_address
    addresses = {
        registered(hosts, "copy").hardware.nics[0].mac_address,
        registered(hosts, "fresh", generatedAddress="").hardware.nics[0].mac_address,
    }
    assert original not in addresses
    assert len(addresses) == 2
    assert all("00:50:56:80" <= address < "00:50:56:c0" for address in addresses)


def test_an_assigned_address_that_is_free_is_kept(hosts: Hosts) -> None:
    nic = registered(hosts, "kept", generatedAddress="00:50:56:8f:00:01").hardware.nics[0]
    assert (nic.mac_address, nic.address_type) == ("00:50:56:8f:00:01", "assigned")


def test_a_static_address_that_is_twice_there_is_kept_and_an_event(hosts: Hosts) -> None:
    one = hosts.world.vm("one")
    address = one.hardware.nics[0].mac_address
    nic = registered(hosts, "twin", addressType="static", address=address).hardware.nics[0]
    assert (nic.mac_address, nic.address_type) == (address, "manual")
    events = [event for event in hosts.events(0, 1000) if event.type == "vm-mac-conflict"]
    assert [(event.other, event.mac) for event in events] == [(one.moref, address)]


@pytest.mark.parametrize(
    ("address", "check", "powers_on"),
    [
        ("00:50:56:3f:ff:ff", "", True),
        ("00:50:56:8f:00:01", "", False),
        ("00:0c:29:00:00:01", "", False),
        ("00:0c:29:00:00:01", "FALSE", True),
        ("52:54:00:00:00:01", "", True),
        ("nonsense", "", False),
    ],
)
def test_a_static_address_of_vmwares_own_ranges_does_not_power_on(
    hosts: Hosts, address: str, check: str, powers_on: bool
) -> None:
    vm = registered(hosts, "static", addressType="static", address=address, checkMACAddress=check)
    task = hosts.wait_task(hosts.power_on(vm.moref, user="t").task, 20)
    assert (task.error is None) is powers_on


def test_an_unknown_network_stays_a_name_and_a_distributed_one_needs_its_key(hosts: Hosts) -> None:
    for name, network in (("a", "Nowhere"), ("b", "dv-prod")):
        nic = registered(hosts, name, networkName=network).hardware.nics[0]
        assert (nic.network, nic.network_name) == ("", network)
    key = {"networkName": "", "dvs.portgroupId": "dvportgroup-50"}
    nic = registered(hosts, "c", **key).hardware.nics[0]
    assert (nic.network, nic.network_name) == ("dvportgroup-50", "dv-prod")
