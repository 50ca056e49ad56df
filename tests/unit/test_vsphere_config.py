"""Goal: a wrong address, trust or secret shows at once, and no secret is ever shown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from activities import peers
from safehaul.config.example import example_toml
from safehaul.config.loader import load
from safehaul.errors import ConfigError
from safehaul.vsphere.client import VCenter
from safehaul.vsphere.hardware import kept_settings
from safehaul.vsphere.tls import Trust

SECRET = SecretStr("hunter2-secret")


@pytest.mark.parametrize(
    "url", ["http://vc.example.net", "https://", "https://u:p@vc.example.net", "https://vc:99999", "vc?x=1"]
)
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        VCenter("lab", url=url, user="u", password=SECRET)


def test_url_and_host_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="either"):
        VCenter("lab", url="https://a", host="b", user="u", password=SECRET)


@pytest.mark.parametrize("thumbprint", ["abc", "00" * 20, "zz" * 32])
def test_only_sha256_thumbprints_are_accepted(thumbprint: str) -> None:
    with pytest.raises(ConfigError, match="SHA-256"):
        Trust(thumbprint_sha256=thumbprint)


def test_two_kinds_of_trust_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of"):
        Trust(ca_file=tmp_path / "ca.pem", insecure=True)


def test_a_ca_file_without_certificates_is_refused_before_the_first_call(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    with pytest.raises(ConfigError, match="ca_file"):
        VCenter("lab", url="https://vc", user="u", password=SECRET, ca_file=empty)


def test_insecure_is_logged_and_the_password_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        vcenter = VCenter("lab", url="https://vc", user="u", password=SECRET, insecure=True)
    assert "verification is off" in caplog.text
    assert "hunter2" not in caplog.text + repr(vcenter) + str(vars(vcenter))


def test_extra_config_keeps_hardware_and_drops_identity_and_secrets() -> None:
    settings = {
        "disk.EnableUUID": "TRUE",
        "scsi0.pciSlotNumber": "160",
        "guestinfo.userdata": "cGFzc3dvcmQ=",
        "RemoteDisplay.vnc.password": "x",
        "bios.password": "x",
        "sched.swap.derivedName": "/vmfs/volumes/1/x.vswp",
        "scsi0:0.ctkEnabled": "TRUE",
        "svga.note": "two\nlines",
        "numa.note": "y" * 5000,
    }
    assert kept_settings(settings) == {"disk.EnableUUID": "TRUE", "scsi0.pciSlotNumber": "160"}


def test_the_configured_limit_and_trust_reach_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(peers, "VCenter", lambda name, **options: given.update(options, name=name))
    monkeypatch.setenv("VC_PASSWORD", "hunter2-secret")
    text = example_toml()
    for old, new in (
        ('{ file = "/etc/safehaul/vcenter-password" }', '{ env = "VC_PASSWORD" }'),
        ('ca_file = "/etc/safehaul/vcenter-ca.pem"', f'thumbprint_sha256 = "{":".join(["AB"] * 32)}"'),
        ("# max_concurrent_calls = 8", "max_concurrent_calls = 3"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "safehaul.toml"
    path.write_text(text)
    peers.Peers(load(path)).vcenter("main")
    assert given["max_concurrent_calls"] == 3
    assert given["thumbprint_sha256"] == "ab" * 32
    assert given["ca_file"] is None
    assert not given["insecure"]
    assert given["password"].get_secret_value() == "hunter2-secret"
