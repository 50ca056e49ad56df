"""Goal: `check` names everything that is wrong with a configuration at once, by file, key and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehaul.config.example import example_toml
from safehaul.config.loader import check, find_config, load
from safehaul.config.models import VmGroup
from safehaul.errors import ConfigError, InvalidInputError


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "safehaul.toml"
    path.write_text(example_toml())
    return path


def _edited(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def _reasons(path: Path) -> dict[str, str]:
    return {problem.key: problem.reason for problem in check(path)}


def test_the_documented_example_is_valid_and_means_what_it_says(example: Path) -> None:
    assert check(example) == []
    settings = load(example)
    group = settings.vm_group("nightly")
    assert [node.name for node in settings.access_nodes_of(group)] == ["node-1", "node-2"]
    assert settings.vcenter("main").port == 443
    assert settings.access_node("node-1").spool_limit_bytes == 2 * 2**30
    assert settings.access_node("node-2").streams is None
    assert settings.media_agent("vault").repository == "file:///srv/safehaul/repository"
    assert settings.temporal.tls.enabled
    assert [export.writable for export in (*settings.exports, *settings.restore_exports)] == [
        False,
        False,
        True,
    ]


def test_a_buckets_keys_are_taken_and_http_only_for_this_machine_or_when_said(example: Path) -> None:
    keys = ("s3_access_key", "s3_secret_key", "s3_prune_access_key", "s3_prune_secret_key")
    references = "\n".join(f'{key} = {{ env = "{key.upper()}" }}' for key in keys)
    for endpoint, more in (
        ("https://s3.example.net:9000/", ""),
        ("http://127.0.0.1:8333", ""),
        ("http://[::1]:8333", ""),
        ("http://localhost", ""),
        ("http://s3.example.net", "s3_allow_http = true"),
    ):
        bucket = f'{references}\ns3_endpoint = "{endpoint}"\n{more}\nrepository = "s3://vault/site-a'
        agent = load(_edited(example, ('repository = "file:///srv/safehaul/repository', bucket))).media_agent(
            "vault"
        )
        assert agent.s3_endpoint == endpoint.rstrip("/")
        assert str(agent.s3_prune_secret_key) == "environment variable S3_PRUNE_SECRET_KEY"
        example.write_text(example_toml())


@pytest.mark.parametrize(
    ("keys", "scheme", "key", "reason"),
    [
        ('s3_region = "x"', "file:///", '"vault"]', "s3_region is for a repository in s3://"),
        ('s3_access_key = { env = "A" }', "s3://", '"vault"]', "go together"),
        ('s3_prune_secret_key = { env = "A" }', "s3://", '"vault"]', "go together"),
        ('s3_secret_key = "S3cret!"', "s3://", ".s3_secret_key", "env = "),
        ('s3_endpoint = "http://s3.x"', "s3://", '"vault"]', "s3_allow_http = true"),
        ('s3_endpoint = "https://S3cret!@x"', "s3://", ".s3_endpoint", "keys of their own"),
        ('s3_endpoint = "s3.x"', "s3://", ".s3_endpoint", "https://s3.example.net"),
        ('s3_part_size_bytes = "1 MiB"', "s3://", ".s3_part_size_bytes", "5"),
    ],
)
def test_a_wrong_key_of_a_bucket_is_named(
    example: Path, keys: str, scheme: str, key: str, reason: str
) -> None:
    (problem,) = check(_edited(example, ('repository = "file:///', f'{keys}\nrepository = "{scheme}')))
    assert problem.key.endswith(key)
    assert reason in problem.reason
    assert "S3cret!" not in str(problem)


def test_the_example_shows_every_key_of_a_vm_group() -> None:
    text = example_toml()
    missing = [
        name
        for name in VmGroup.model_fields
        if f"\n{name} = " not in text and f"\n[vm_groups.{name}]\n" not in text
    ]
    assert missing == []


def test_every_problem_is_reported_at_once(example: Path) -> None:
    path = _edited(
        example,
        ('installation_id = "6f2d', 'installation_id = "zzzz'),
        ('namespace = "backup"', 'namespacce = "backup"'),
        ("streams = 4", 'streams = "many"'),
        ('name = "node-2"', 'name = "node-1"'),
        ('vcenter = "main"', 'vcenter = "mian"'),
        ('access_nodes = ["node-1", "node-2"]', 'access_nodes = ["node-9"]'),
        ("subfolders = true", "subfolder = true"),
        ('distribution = "dynamic"', 'distribution = "random"'),
    )
    reasons = _reasons(path)
    assert "UUID" in reasons.pop("installation_id")
    assert reasons.pop("temporal.namespacce") == "unknown key, did you mean 'namespace'?"
    assert reasons.pop('access_nodes["node-1"].streams') == "must be a whole number"
    assert "'node-1' already" in reasons.pop('access_nodes["node-1"].name')
    assert "did you mean 'main'?" in reasons.pop('vm_groups["nightly"].vcenter')
    assert "no access node 'node-9'" in reasons.pop('vm_groups["nightly"].access_nodes[0]')
    assert "'subfolders'" in reasons.pop('vm_groups["nightly"].rules[1].subfolder')
    assert "'dynamic' or 'static'" in reasons.pop('vm_groups["nightly"].distribution')
    assert reasons == {}
    with pytest.raises(ConfigError, match=r"namespacce(.|\n)*rules\[1\].subfolder"):
        load(path)


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ('{ file = "/etc/safehaul/vcenter-password" }', '"S3cret!"', ".password", "env = "),
        ('{ file = "/etc/safehaul/vcenter-password" }', '{ env = "A", file = "/b" }', "d", "exactly one"),
        ('{ file = "/etc/safehaul/vcenter-password" }', '{ keyring = "user" }', ".password", "service/user"),
        ("https://vcenter", "https://root:S3cret!@vcenter", ".url", "keys of their own"),
        ("https://vcenter", "http://vcenter", ".url", "https://"),
        ("sqlite:////var", "sqlite:///var", "catalog.url", "absolute"),
        ("sqlite:////var/lib", "postgresql://u:S3cret!@db/lib", "catalog.url", "password"),
        ("# password = { file", "password = { file", "catalog", "needs the user"),
        ("gid = 0", "gid = 0\nwritable = true", '"nas-1"]', "restore_exports"),
        ("tls = true", "tls = false", "temporal", "in clear"),
        ('name = "nas-2"', 'name = "NAS.2"', ".name", "a-z"),
        ("file:///srv", "ftp://srv", ".repository", "file://, s3://, gs://, az://"),
        ("file:///srv", "s3:///srv", ".repository", "s3://bucket/prefix"),
        ("file:///srv", "s3://S3cret!@srv", ".repository", "s3://bucket/prefix"),
        ('"2 GiB"', '"2 GB"', ".spool_limit_bytes", "GiB"),
        ('version = "auto"', "version = 4.2", ".version", "'4.1'"),
        ('remote_path = "/vol/datastore2"', 'remote_path = "/vol/../x"', ".remote_path", "'..'"),
        ('remote_hosts = ["nas-2"]\nremote_path = "/vol/datastore2"',
         'remote_hosts = ["10.20.0.5"]\nremote_path = "/vol/datastore1"', ".remote_hosts", "already"),
        ("quiesce = true ", "quiesce = false ", '"nightly"]', "no effect"),
        ('{ name = "web-*", ignore_case = true }', '{ nmae = "x" }', ".rules[0]", "did you mean 'name'?"),
        ('{ name = "web-*", ignore_case = true }', '{ guids = ["x"] }', ".rules[0].guids", "VC.GUID"),
        ('"(sql|ora)-[0-9]+"', '"(sql|ora-[0-9]+"', ".rules[2].name", "no regular expression: missing )"),
        ('"(sql|ora)-[0-9]+"', '"(?!x)y"', ".rules[2].name", "no look-around"),
        ('hardware_version = ">=13"', 'hardware_version = "new"', ".hardware_version", "'>=13'"),
        ('category = "Backup"', 'categroy = "Backup"', ".rules[3].categroy", "did you mean 'category'?"),
        ('power_state = "poweredOn"', 'power_state = "on"', ".all[1].power_state", "'poweredOff'"),
        ("controller_key = 1000 }", "ignore_case = true }", ".disks[0]", "needs one key at least"),
        ('file = "*pagefile*"', 'path = "*pagefile*"', ".exclude_disks[0].path", "known here: label"),
        ('min_size_bytes = "2 TiB"', 'min_size_bytes = "63 TiB"', ".exclude_disks[2]", "above max_size_bytes"),
        ("# thumbprint_sha256", "insecure_skip_verify = true #", '"main"]', "exclude each other"),
        ("daily = 14", "dayly = 14", ".retention.dayly", "did you mean 'daily'?"),
        ("min_backups = 2", "min_backups = 0", ".retention.min_backups", "greater than or equal to 1"),
        ("keep_last = 3", "keep_last = -3", ".retention.keep_last", "greater than or equal to 0"),
        ('verify_at = "sun 12:00"', 'verify_at = "sunday"', ".verify_at", "a day and time in UTC"),
        ('prune_at = "11:00"', 'prune_at = "25:00"', ".prune_at", "a time of day in UTC"),
        ("installation_id", "_env_file = '/x'\ninstallation_id", "_env_file", "unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_would_be_right(
    example: Path, old: str, new: str, key: str, reason: str
) -> None:
    problems = check(_edited(example, (old, new)))
    assert len(problems) == 1, problems
    assert problems[0].key.endswith(key)
    assert reason in problems[0].reason
    assert problems[0].file == str(example)
    with pytest.raises(ConfigError) as failure:
        load(example)
    assert "S3cret!" not in f"{failure.value!r} {failure.value.__cause__!r} {problems}"


def test_the_catalogue_gets_its_password_only_when_it_is_opened(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEHAUL_CATALOG__URL", "postgresql://safehaul@db:5432/catalog?sslmode=require")
    monkeypatch.setenv("SAFEHAUL_CATALOG__PASSWORD__ENV", "CATALOG_PASSWORD")
    settings = load(example)
    with pytest.raises(ConfigError, match="CATALOG_PASSWORD is missing"):
        settings.catalog_url()
    monkeypatch.setenv("CATALOG_PASSWORD", "a/b@c")
    assert settings.catalog_url() == "postgresql://safehaul:a%2Fb%40c@db:5432/catalog?sslmode=require"
    assert "a/b@c" not in repr(settings)


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("installation_id = 'x'\n[temporal\n")
    (problem,) = check(path)
    assert "line 2" in problem.reason


@pytest.mark.parametrize("content", [b"a = 1\n\xff\n", b"a = " + b"[" * 5000])
def test_a_file_that_is_no_text_or_a_bomb_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert len(check(path)) == 1


def test_rules_that_stand_too_deep_are_refused(example: Path) -> None:
    deep = "{ not = " * 200 + '{ name = "x" }' + " }" * 200
    path = _edited(example, ('{ name = "web-*", ignore_case = true }', deep))
    assert any("deep" in problem.reason for problem in check(path))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    (problem,) = check(tmp_path / "none.toml")
    assert "No such file" in problem.reason
    assert problem.file.endswith("none.toml")


def test_a_missing_required_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert {"installation_id", "catalog", "vcenters", "access_nodes", "media_agents"} == set(_reasons(path))


def test_an_unknown_name_lists_what_exists(example: Path) -> None:
    with pytest.raises(InvalidInputError, match="no VM group 'weekly'; it has: nightly"):
        load(example).vm_group("weekly")


def test_the_file_is_found_by_option_then_variable_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAFEHAUL_CONFIG", raising=False)
    monkeypatch.setattr(
        "safehaul.config.loader.DEFAULT_PATHS", (Path("safehaul.toml"), tmp_path / "etc.toml")
    )
    with pytest.raises(ConfigError, match="--config or SAFEHAUL_CONFIG"):
        find_config()
    (tmp_path / "etc.toml").touch()
    assert find_config() == tmp_path / "etc.toml"
    (tmp_path / "safehaul.toml").touch()
    assert find_config() == Path("safehaul.toml")
    monkeypatch.setenv("SAFEHAUL_CONFIG", "/elsewhere.toml")
    assert find_config() == Path("/elsewhere.toml")
    assert find_config("/given.toml") == Path("/given.toml")


SECOND = """
[[exports]]
name = "far"
remote_hosts = ["NAS-1.example.net"]
remote_path = "/vol/datastore1"
"""


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [("", "", True), ("DC-1", "", True), ("", "DC-2", True), ("DC-1", "DC-1", True), ("DC-1", "DC-2", False)],
)
def test_one_filer_address_may_be_another_filer_in_another_datacentre(
    example: Path, first: str, second: str, clash: bool
) -> None:
    path = _edited(example, ('datacenter = ""', f'datacenter = "{first}"'))
    path.write_text(path.read_text() + SECOND + (f'datacenter = "{second}"\n' if second else ""))
    found = _reasons(path)
    if not clash:
        assert found == {}
        return
    assert list(found) == ['exports["far"].remote_hosts']
    assert "is in 'nas-1' already" in next(iter(found.values()))
    assert "`datacenter`" in next(iter(found.values()))


def test_a_second_copy_goes_to_another_media_agent_and_is_nobodys_default(example: Path) -> None:
    repository = 'repository = "file:///srv/safehaul/repository"'
    _edited(example, (repository, f'copy_to = "offsite"\n{repository}'))
    assert "there is no media agent 'offsite'" in _reasons(example)['media_agents["vault"].copy_to']
    second = '\n[[media_agents]]\nname = "offsite"\nrepository = "file:///srv/offsite/repository"\n'
    example.write_text(example.read_text() + second)
    assert check(example) == []
    assert load(example).default_media_agent().name == "vault"
    _edited(example, ('copy_to = "offsite"', ""))
    with pytest.raises(InvalidInputError, match="vault, offsite"):
        load(example).default_media_agent()
    _edited(example, (repository, f'copy_to = "vault"\n{repository}'))
    assert "name another one" in _reasons(example)['media_agents["vault"].copy_to']
