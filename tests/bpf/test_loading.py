"""Which source is taken, what is loaded, and what is said where it cannot be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agentsched.cgroups import HostRefused, Leaf, SpecRefused
from agentsched.cgroups.bpf import headers, loading, open_source, sensing
from tests.bpf.conftest import Start

HEADER = "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0"


@pytest.mark.parametrize("file", sorted(Path(loading.__file__).parent.rglob("*.[ch]")), ids=lambda f: f.name)
def test_every_c_file_may_be_used_under_both_licences(file: Path) -> None:
    assert HEADER in file.read_text(encoding="utf-8").splitlines()[0]


def test_every_program_is_a_file_that_says_what_it_costs() -> None:
    files = {file.stem for file in loading.FOLDER.glob("*.c")}
    assert files == set(loading.PROGRAMS)
    for name in files:
        assert "Overhead:" in loading.text([name])


def test_a_program_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no BPF program 'net'"):
        loading.text(["net"])


def test_polling_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sensing.VARIABLE, "polling")
    assert open_source().name == "polling"
    monkeypatch.setenv(sensing.VARIABLE, "magic")
    with pytest.raises(SpecRefused, match="'magic' is not one of"):
        open_source()


def test_without_bpf_polling_is_taken_and_what_is_lost_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "why_not", lambda: "no tracefs: mount it")
    with caplog.at_level(logging.WARNING):
        source = open_source()
    assert source.name == "polling"
    assert len(caplog.records) == 1
    assert "no tracefs: mount it" in caplog.text
    assert source.lost[0] in caplog.text
    with pytest.raises(HostRefused, match="no tracefs"):
        open_source(wanted="bpf")


def test_a_program_that_does_not_compile_is_said_with_the_compilers_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if (reason := loading.why_not()) is not None:
        pytest.skip(f"no BPF here: {reason}")
    for file in loading.FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "oom.c").write_text("TRACEPOINT_PROBE(oom, mark_victim) { return nothing_such; }")
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    with pytest.raises(HostRefused, match="nothing_such"):
        loading.load(["oom"])


@pytest.mark.cgroups
def test_facts_of_programs_that_are_not_loaded_are_unknown(leaf: Leaf, start: Start) -> None:
    if (reason := loading.why_not()) is not None:
        pytest.skip(f"no BPF here: {reason}")
    source = open_source(("oom",), "bpf")
    try:
        source.watch(leaf)
        assert start("true").wait(10) == 0
        facts = source.facts(leaf)
        assert (facts.forks, facts.ready_s, facts.page_faults, facts.read_bytes) == (None, None, None, None)
        assert facts.oom_kills == 0
        assert facts.running_s == pytest.approx(leaf.usage().cpu_s)
        assert len(source.lost) == len(loading.PROGRAMS) - 1
    finally:
        source.close()


def test_the_stand_in_for_headers_has_what_bcc_includes(tmp_path: Path) -> None:
    try:
        headers.stand_in(tmp_path)
    except HostRefused as error:
        pytest.skip(str(error))
    for name in ("linux/types.h", "uapi/linux/bpf_common.h", "linux/version.h", "asm-generic/errno.h"):
        assert (tmp_path / "include" / name).exists()
