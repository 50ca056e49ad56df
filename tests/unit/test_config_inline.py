"""Goal: a group that a job is given whole is checked as a named one is, and each bad key is named the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safehaul.config.example import example_toml
from safehaul.config.inline import group_of, inline_group
from safehaul.config.loader import load
from safehaul.config.settings import Settings
from safehaul.errors import InvalidInputError
from safehaul.messages.requests import BackupJobRequest

GOOD = {"vcenter": "main", "media_agent": "vault", "rules": [{"name": "web-*"}]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "safehaul.toml"
    path.write_text(example_toml())
    return load(path)


def test_a_good_group_is_what_the_configuration_would_make_of_it(settings: Settings) -> None:
    group = inline_group(settings, {**GOOD, "min_free_bytes": "1 GiB", "disks": [{"label": "Hard disk 1"}]})
    assert (group.name, group.min_free_bytes, group.distribution) == ("inline", 2**30, "dynamic")
    assert group.disk_selection.include[0].label == "Hard disk 1"
    assert [node.name for node in settings.access_nodes_of(group)] == ["node-1", "node-2"]
    assert inline_group(settings, {**GOOD, "name": "adhoc"}).name == "adhoc"


def test_a_name_is_looked_up_and_a_group_is_taken(settings: Settings) -> None:
    assert group_of(settings, "nightly", None) is settings.vm_group("nightly")
    assert group_of(settings, "inline", GOOD).rules[0].text() == "name 'web-*'"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rules": [{"name": "(", "regex": True}]}, "vm_group.rules[0].name: is no regular expression"),
        ({"rules": [{"nmae": "x"}]}, "did you mean 'name'?"),
        ({"rules": []}, "vm_group.rules: must not be empty"),
        ({"rules": [{"all": [{"folder": "x", "subfolder": True}]}]}, "vm_group.rules[0].all[0].subfolder: unknown"),
        ({"vcenter": "mian"}, "vm_group.vcenter: there is no vCenter 'mian' in [[vcenters]], did you mean 'main'?"),
        ({"media_agent": None}, "vm_group.media_agent: must be a text in quotes"),
        ({"access_nodes": ["node-1", "node-9"]}, "vm_group.access_nodes[1]: there is no access node 'node-9'"),
        ({"streems": 3}, "vm_group.streems: unknown key, did you mean 'streams'?"),
        ({"name": "nightly"}, "vm_group.name: is the name of a configured VM group"),
        ({"name": "No Name"}, "vm_group.name: must be 1 to 63 of a-z"),
        ({"disks": [{}]}, "vm_group.disks[0]: needs one key at least"),
        ({"retention": {"daily": 7}}, "vm_group.retention: is for a configured VM group"),
        ({"quiesce_fallback": True}, "vm_group: quiesce_fallback has no effect"),
    ],
)  # fmt: skip
def test_each_bad_key_is_named(settings: Settings, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match="the inline VM group is wrong") as failure:
        inline_group(settings, {**GOOD, **change})
    assert told in str(failure.value)


def test_everything_that_is_wrong_is_said_at_once_and_no_value_is_repeated(settings: Settings) -> None:
    with pytest.raises(InvalidInputError) as failure:
        inline_group(settings, {"vcenter": "x", "password": "S3cret!", "order": "S3cret!"})
    told = str(failure.value)
    for key in (
        "vm_group.vcenter",
        "vm_group.media_agent: is missing",
        "vm_group.rules",
        "vm_group.password",
        "order",
    ):
        assert key in told
    assert "S3cret!" not in told


def test_rules_too_deep_are_an_error_and_no_crash(settings: Settings) -> None:
    rule: dict[str, Any] = {"name": "x"}
    for _ in range(2000):
        rule = {"not": rule}
    with pytest.raises(InvalidInputError, match="deep"):
        inline_group(settings, {**GOOD, "rules": [rule]})


def test_a_request_takes_a_name_or_a_group_and_nothing_else() -> None:
    assert BackupJobRequest.model_validate({"vm_group": "nightly"}).inline_group is None
    whole = BackupJobRequest.model_validate({"vm_group": GOOD})
    assert (whole.inline_group, whole.group_name) == (GOOD, "inline")
    assert BackupJobRequest(vm_group={**GOOD, "name": "adhoc"}).group_name == "adhoc"
    assert BackupJobRequest(vm_group={**GOOD, "name": 7}).group_name == "inline"
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"not": deep}
    with pytest.raises(ValidationError, match="more than 32 deep"):
        BackupJobRequest.model_validate({"vm_group": {**GOOD, "rules": [deep]}})
    large = [f"{number:08}-0000-0000-0000-000000000000" for number in range(8000)]
    with pytest.raises(ValidationError, match="larger than 256 KiB: put the group into the configuration"):
        BackupJobRequest.model_validate({"vm_group": {**GOOD, "rules": [{"guids": large}]}})
    wrong: Any
    for wrong in ("", 7, None, [], {}, ["nightly"], "x" * 201):
        with pytest.raises(ValidationError, match="name of a VM group"):
            BackupJobRequest.model_validate({"vm_group": wrong})
