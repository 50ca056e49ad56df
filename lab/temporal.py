"""A Temporal server with its web UI on loopback, from the `temporal` command line's development server."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.processes import LabProcess, answers, free_port, tool

SEARCH_ATTRIBUTES = ("JobId", "VmName", "VcGuid", "VmGroup", "AccessNode", "BackupStatus")


class TemporalServer:
    """The server process; its state is a file, so that it survives a restart."""

    def __init__(self, directory: Path, *, ui: bool = True, suggest_new_run_events: int = 0) -> None:
        """`suggest_new_run_events`: history length at which a continue-as-new is suggested; 0: the server's own."""
        self.port = free_port()
        self.ui_port = free_port() if ui else 0
        self._directory = directory
        self._ui = ui
        self._suggest_new_run_events = suggest_new_run_events
        self.process: LabProcess | None = None

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str:
        """Where a person looks."""
        return f"http://127.0.0.1:{self.ui_port}"

    def start(self) -> None:
        """Start and wait until the server answers with its search attributes made."""
        # Without WAL a file database stalls at about a thousand workflows.
        command = [
            tool("temporal"),
            "server",
            "start-dev",
            *("--ip", "127.0.0.1", "--port", str(self.port)),
            *("--db-filename", str(self._directory / "temporal.db")),
            *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"),
            *("--log-level", "error"),
        ]
        command += ["--ui-ip", "127.0.0.1", "--ui-port", str(self.ui_port)] if self._ui else ["--headless"]
        if self._suggest_new_run_events:
            setting = f"limit.historyCount.suggestContinueAsNew={self._suggest_new_run_events}"
            command += ["--dynamic-config-value", setting]
        for name in SEARCH_ATTRIBUTES:
            command += ["--search-attribute", f"{name}=Keyword"]
        self._directory.mkdir(parents=True, exist_ok=True)
        self.process = LabProcess("temporal", command, self._directory / "temporal.log")
        self.process.wait_until(self._serves)

    def stop(self) -> None:
        """End the server."""
        if self.process is not None:
            self.process.stop()

    def cli(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the `temporal` command against this server, as a person would."""
        return subprocess.run(
            [tool("temporal"), *arguments, "--address", self.address],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def _serves(self) -> bool:
        if not answers(self.port):
            return False
        return self.cli("operator", "search-attribute", "list").stdout.count("Keyword") > len(
            SEARCH_ATTRIBUTES
        )
