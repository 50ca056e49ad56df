"""Goal: a secret is read only when asked for, from where its reference says; never shown, never guessed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backends.fail import Keyring as NoKeyring

from safehaul.config.secrets import SecretRef
from safehaul.errors import ConfigError


class _MemoryKeyring(NoKeyring):
    """Keeps one entry in memory, since a test machine has no keyring."""

    def get_password(self, service: str, username: str, msg: str | None = None) -> str | None:
        return "S3cret!" if (service, username) == ("safehaul/main", "backup@vsphere.local") else None


@pytest.fixture
def use_keyring() -> Iterator[Callable[[NoKeyring], None]]:
    before = keyring.get_keyring()
    yield keyring.set_keyring
    keyring.set_keyring(before)


def test_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VC_PASSWORD", "S3cret!")
    secret = SecretRef(env="VC_PASSWORD").resolve()
    assert secret.get_secret_value() == "S3cret!"
    assert "S3cret!" not in repr(secret)
    monkeypatch.delenv("VC_PASSWORD")
    with pytest.raises(ConfigError, match="environment variable VC_PASSWORD is missing or empty"):
        SecretRef(env="VC_PASSWORD").resolve()


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"S3cret!\n", "S3cret!"),
        (b"S3cret!\r\n", "S3cret!"),
        (b" a b \n\n", " a b \n"),
        ("pä".encode(), "pä"),
    ],
)
def test_a_file_without_its_last_line_break(tmp_path: Path, content: bytes, secret: str) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(content)
    assert SecretRef(file=str(path)).resolve().get_secret_value() == secret


def test_a_file_that_everyone_can_read_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    path.write_text("S3cret!")
    path.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        SecretRef(file=str(path)).resolve()
        assert caplog.text == ""
        path.chmod(0o644)
        SecretRef(file=str(path)).resolve()
    assert f"{path}: chmod o-rwx" in caplog.text
    assert "S3cret!" not in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"\xffS3cret!", "UTF-8"), (b"x" * 65537, "larger")]
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=reason) as failure:
        SecretRef(file=str(path)).resolve()
    assert failure.value.__cause__ is None
    assert "S3cret!" not in str(failure.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/nonexistent/secret cannot be read by uid \d+: No such file"):
        SecretRef(file="/nonexistent/secret").resolve()


def test_a_keyring_entry_is_divided_at_the_last_slash(use_keyring: Callable[[NoKeyring], None]) -> None:
    use_keyring(_MemoryKeyring())  # type: ignore[no-untyped-call]  # keyring's constructors have no types
    reference = SecretRef(keyring="safehaul/main/backup@vsphere.local")
    assert reference.resolve().get_secret_value() == "S3cret!"
    with pytest.raises(ConfigError, match="keyring entry safehaul/other is missing"):
        SecretRef(keyring="safehaul/other").resolve()


def test_no_keyring_on_the_machine_is_a_clear_error(use_keyring: Callable[[NoKeyring], None]) -> None:
    use_keyring(NoKeyring())  # type: ignore[no-untyped-call]  # keyring's constructors have no types
    with pytest.raises(ConfigError, match="keyring entry a/b cannot be read on this machine"):
        SecretRef(keyring="a/b").resolve()
