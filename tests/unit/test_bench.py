"""Goal: the benchmark counts right: medians, paired ratios, the JSON object, nulls with reasons, disks, memory."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import table
from tests.bench.contenders import Step, fastest_borg_mode
from tests.bench.figures import (
    BORG,
    HEADLINE,
    LIMIT,
    LOCAL,
    LOCAL_LIMIT,
    RESTIC,
    Figures,
    Spread,
    cpu,
    paired,
    spread,
)
from tests.bench.images import BLOCK_BYTES, Images, scattered
from tests.bench.processes import BenchError, Command, Cost, cost, run, stored_bytes
from tests.bench.profile import shares
from tests.bench.rounds import Run

GIB = 1 << 30
KEYS = {
    "full_cpu_s_per_gib",
    "full_wall_vs_restic",
    "full_wall_vs_borg",
    "full_wall_vs_limit",
    "increment_vs_restic",
    "increment_vs_borg",
    "rescan_vs_restic",
    "restore_vs_restic",
    "restore_vs_borg",
    "stored_vs_restic",
    "stream_memory_mib",
    "four_streams_vs_one",
    "four_streams_fairness",
}


def _run(
    contender: str, step: Step, number: int, wall_s: float, *, cpu_s: float = 1.0, flush_s: float = 0.0
) -> Run:
    facts = {
        "bytes_zero": GIB,
        "stream_memory_mib": 40.0 + number,
        "start_s": 0.5,
        "read_back_s": 2.0,
        "open_s": 0.25,
        "commit_s": 0.5,
        "disks": 4,
        "fairness": 0.9 - 0.1 * number,
    }
    return Run(contender, step, number, Cost(wall_s, cpu_s, 100.0, flush_s, facts), 1000, 0.25)


def _images(folder: Path) -> Images:
    return Images(folder, 4 * GIB, 2 * GIB, ((0, 4096), (8192, 8192)))


def test_a_ratio_is_formed_within_each_round_and_its_median_is_told() -> None:
    """The second round was slow for both: the ratio of the medians would be 3.5, which no round had."""
    ours = [_run(HEADLINE, Step.FULL, number, wall_s) for number, wall_s in enumerate((2.0, 20.0, 1.0))]
    peer = [_run(RESTIC, Step.FULL, number, wall_s) for number, wall_s in enumerate((6.0, 80.0, 7.0))]
    found = paired([*ours, *peer], Step.FULL, RESTIC, HEADLINE, lambda done: done.cost.wall_s)
    assert found == Spread(3.0, 4.0, 7.0, 3)


def test_a_round_without_both_is_no_pair() -> None:
    runs = [_run(HEADLINE, Step.FULL, 0, 2.0), _run(RESTIC, Step.FULL, 1, 2.0)]
    assert paired(runs, Step.FULL, RESTIC, HEADLINE, cpu) is None
    assert spread([]) is None


def test_the_object_has_the_promised_keys_and_the_right_figures(tmp_path: Path) -> None:
    runs = []
    for number in range(2):
        for step in (Step.FULL, Step.RESCAN, Step.INCREMENT):
            runs.append(_run(HEADLINE, step, number, 2.0, cpu_s=6.0))
            runs += [_run(LOCAL, step, number, 1.0), _run(LOCAL_LIMIT, step, number, 0.5)]
            runs += [_run(peer, step, number, 5.0) for peer in (RESTIC, BORG, LIMIT)]
        runs.append(_run(HEADLINE, Step.STREAMS, number, 5.0))
        runs.append(_run(HEADLINE, Step.RESTORE, number, 1.0, flush_s=3.0))
        runs += [_run(peer, Step.RESTORE, number, 3.0, flush_s=3.0) for peer in (RESTIC, BORG)]
    jobs: dict[str, float | str | None] = {"job_wall_s": 20.0, "job_mib_per_s": "no data centre"}
    found = Figures(runs, _images(tmp_path), {}, jobs).as_json()
    assert set(found) >= KEYS
    assert found["full_cpu_s_per_gib"] == 1.5
    assert found["full_cpu_s_per_nonzero_gib"] == 2.0
    assert found["full_wall_vs_restic"] == found["full_wall_vs_limit"] == found["rescan_vs_borg"] == 2.5
    assert found["full_wall_vs_borg_file"] == found["rescan_vs_restic_file"] == 5.0
    assert found["full_wall_vs_limit_file"] == 0.5
    assert found["restore_vs_restic"] == 1.5
    assert found["restore_unsynced_vs_restic"] == 3.0
    assert found["stored_vs_restic"] == 1.0
    assert found["stream_memory_mib"] == 41.0, "the most, not the median"
    assert found["four_streams_vs_one"] == 1.2, "four disks of 2.0 s, each 0.5 s for its commit, in 5.0 s"
    assert found["four_streams_fairness"] == 0.8, "the least, not the median"
    assert (found["job_wall_s"], found["job_mib_per_s"]) == (20.0, None)
    assert found["rounds"] == 2
    assert found["not_measured"] == {"job_mib_per_s": "no data centre"}
    assert json.loads(json.dumps(found)) == found


def test_what_was_not_measured_is_null_with_its_reason(tmp_path: Path) -> None:
    steps = (Step.FULL, Step.RESTORE)
    runs = [_run(name, step, 0, 2.0) for name in (RESTIC, BORG, LOCAL) for step in steps]
    found = Figures(runs, _images(tmp_path), {HEADLINE: "no filer", LIMIT: "no filer"}).as_json()
    reasons = found["not_measured"]
    assert isinstance(reasons, dict)
    without_source = {"restore_vs_restic", "restore_vs_borg", "stored_vs_restic"}
    assert {key for key in KEYS if found[key] is None} == KEYS - without_source
    assert set(reasons) >= KEYS - without_source
    assert reasons["full_wall_vs_limit"] == f"{HEADLINE}: no filer; {LIMIT}: no filer"


def test_scattered_extents_are_apart_in_order_and_as_many_bytes_as_wanted() -> None:
    size = 64 << 20
    found = list(scattered(size, 0.04, 16 << 10, 2 << 20, seed=2))
    assert found == list(scattered(size, 0.04, 16 << 10, 2 << 20, seed=2))
    assert abs(sum(length for _, length in found) - 0.04 * size) < BLOCK_BYTES
    assert all(start % BLOCK_BYTES == length % BLOCK_BYTES == 0 < length for start, length in found)
    assert all(start + length <= after for (start, length), (after, _) in pairwise(found))
    assert found[-1][0] + found[-1][1] <= size


def test_a_run_is_measured_without_what_measures_it(tmp_path: Path) -> None:
    """This process is far larger than 60 MiB; the child's peak must be its own."""
    ballast = bytearray(96 << 20)
    written = tmp_path / "written"
    code = f"open({str(written)!r}, 'wb').write(b'x' * 1000); import time; a = bytearray(30 << 20); time.sleep(0.2)"
    command = Command([sys.executable, "-I", "-S", "-c", code], flush=written)
    found = run(command, tmp_path / "report.json")
    assert len(ballast) > 60 << 20
    assert 30 <= found.peak_mib < 60
    assert 0.2 <= found.wall_s < 10
    assert 0 < found.cpu_s < found.wall_s
    assert found.flush_s > 0
    assert stored_bytes(tmp_path / "written") == 1000


def test_a_command_that_fails_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    command = Command([sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(BenchError, match=r"ended with 3:\nno room"):
        run(command, tmp_path / "report.json")


def test_what_a_command_says_of_itself_wins() -> None:
    measured = {"wall_s": 9.0, "cpu_s": 8.0, "peak_mib": 7.0, "flush_s": 0.0}
    assert cost(measured, "some words\n") == Cost(9.0, 8.0, 7.0)
    own = 'words\n{"bench": {"wall_s": 5.0, "read_back_s": 1.0}}\n'
    assert cost(measured, own) == Cost(5.0, 8.0, 7.0, 0.0, {"read_back_s": 1.0})


def test_samples_are_summed_by_what_they_are() -> None:
    lines = [
        "# Overhead|Shared Object|Symbol",
        " 40.00% |backend_c.cpython-311-x86_64-linux-gnu.so |[.] ZSTD_compressBlock_fast",
        " 10.00% |backend_c.cpython-311-x86_64-linux-gnu.so |[.] HUF_compress1X",
        " 9.00% |_rust.abi3.so |[.] fill_block",
        " 2.00% |_rust.abi3.so |[.] ossl_aes_gcm_encrypt_avx512",
        " 3.00% |[kernel.kallsyms] |[k] _copy_to_iter",
        " 1.00% |something.so |[.] else",
    ]
    assert shares(lines) == [
        ("zstd", 50.0),
        ("key derivation, once for each opening (Argon2id)", 9.0),
        ("kernel: copies between it and the process", 3.0),
        ("AES-GCM", 2.0),
        ("everything else", 1.0),
    ]


def test_the_table_goes_between_the_documents_markers(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    table.write_into(document, "new")
    table.write_into(document, "newer")
    assert document.read_text() == f"before\n\n{table.BEGIN}\n\nnewer\n\n{table.END}\n\nafter\n"
    document.write_text("nothing")
    with pytest.raises(BenchError, match="printed only"):
        table.write_into(document, "new")


def test_the_real_document_has_the_markers() -> None:
    text = bench.DOCUMENT.read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1


def test_the_peer_is_given_its_fastest_encryption() -> None:
    assert fastest_borg_mode("fpu aes sha_ni") == "repokey"
    assert fastest_borg_mode("fpu aes") == "repokey-blake2"


def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_SIZE_MIB", "1e3")
    with pytest.raises(BenchError, match="not a number of MiB"):
        bench.image_mib(full=False)


def test_a_missing_peer_ends_with_code_2_and_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, **_: None if program == "borg" else program)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert bench.main() == 2
    assert "apt-get install borgbackup" in capsys.readouterr().out
