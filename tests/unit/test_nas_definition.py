"""Goal: each NAS datastore finds exactly its export definition, or a message that says what to add or why not."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from safehaul.errors import ConfigError, UnsupportedError
from safehaul.messages.exports import ExportDefinition
from safehaul.messages.inventory import NasVolume
from safehaul.nas.definition import match


def _volume(**changes: Any) -> NasVolume:
    facts = {
        "datastore": "ds1",
        "moref": "datastore-1",
        "type": "NFS",
        "remote_host": "nas1",
        "remote_path": "/v/a",
    }
    return NasVolume(**(facts | changes))


def _export(**changes: Any) -> ExportDefinition:
    facts = {"name": "a", "remote_hosts": ["nas1", "10.0.0.1"], "remote_path": "/v/a"}
    return ExportDefinition(**(facts | changes))


@pytest.mark.parametrize(
    "volume",
    [
        _volume(),
        _volume(remote_host="NAS1."),
        _volume(remote_host="10.0.0.1"),
        _volume(remote_path="/v/a/"),
        _volume(remote_host="other, 10.0.0.1"),
    ],
)
def test_spellings_of_one_filer_are_one(volume: NasVolume) -> None:
    assert match(volume, [_export(name="b", remote_path="/v/b"), _export()]).name == "a"


def test_addresses_of_ipv6_are_compared_as_numbers() -> None:
    definition = _export(remote_hosts=["[2001:DB8::1]"])
    assert match(_volume(remote_host="2001:db8:0:0::1"), [definition]).name == "a"


def test_the_version_is_the_one_of_the_hosts_unless_the_definition_says_another() -> None:
    assert match(_volume(), [_export()]).version == "3"
    assert match(_volume(type="NFS41"), [_export()]).version == "4.1"
    assert match(_volume(type="NFS41"), [_export(version="3")]).version == "3"


def test_a_definition_for_one_datacentre_is_not_used_in_another() -> None:
    near, far = _export(name="near", datacenter="DC-1"), _export(name="far", datacenter="datacenter-9")
    here = {"datacenter": "DC-1", "datacenter_moref": "datacenter-2"}
    there = {"datacenter": "DC-1", "datacenter_moref": "datacenter-9"}
    assert match(_volume(**here), [near, far]).name == "near"
    assert match(_volume(datacenter="DC-2", datacenter_moref="datacenter-9"), [near, far]).name == "far"
    assert match(_volume(datacenter="DC-2", datacenter_moref="datacenter-3"), [near, _export()]).name == "a"
    with pytest.raises(ConfigError, match=r"fits several exports: 'near', 'far'.*`datacenter`"):
        match(_volume(**there), [near, far])
    with pytest.raises(ConfigError, match="no export is defined"):
        match(_volume(), [near, far])


def test_backups_and_restores_use_separate_definitions() -> None:
    definitions = [_export(name="r"), _export(name="w", writable=True)]
    assert match(_volume(), definitions).name == "r"
    assert match(_volume(), definitions, writable=True).name == "w"
    with pytest.raises(ConfigError, match="restore_exports"):
        match(_volume(), definitions[:1], writable=True)


def test_a_missing_definition_is_told_with_the_toml_to_add() -> None:
    volume = _volume(datastore='we"ird\\\n', remote_path="/v/zz")
    with pytest.raises(ConfigError, match="nas1:/v/zz") as caught:
        match(volume, [_export()])
    text = str(caught.value).split("add:\n", 1)[1]
    (entry,) = tomllib.loads(text)["exports"]
    assert match(volume, [ExportDefinition(**entry)]).remote_path == "/v/zz"


def test_two_definitions_for_one_datastore_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'a', 'b'"):
        match(_volume(), [_export(), _export(name="b")])


def test_what_the_nas_transport_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="VMFS"):
        match(_volume(type="VMFS"), [_export()])
    with pytest.raises(UnsupportedError, match="SEC_KRB5"):
        match(_volume(security_type="SEC_KRB5"), [_export()])


@pytest.mark.parametrize(
    "changes",
    [
        {"remote_path": "v"},
        {"path": "v"},
        {"mounted_at": "mnt"},
        {"remote_hosts": []},
        {"nfs_port": 0},
        {"x": 1},
        {"address": "nas/..?version=3"},
    ],
)
def test_bad_definitions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _export(**changes)
