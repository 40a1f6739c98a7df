"""Output files: whole or not at all, and never over what is there without being told so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuser.export.files import OutputError, check_new, replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    with replacing(out) as (draft,):
        draft.write_bytes(b"new")
        assert draft.parent == tmp_path and draft.suffix == ".bin" and not out.exists()
    assert out.read_bytes() == b"new" and names(tmp_path) == ["out.bin"]


def test_what_is_there_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    out.chmod(0o640)
    with pytest.raises(OutputError, match="there already"), replacing(out) as (draft,):
        draft.write_bytes(b"new")
    assert out.read_bytes() == b"old"
    with replacing(out, force=True) as (draft,):
        draft.write_bytes(b"new")
    assert out.read_bytes() == b"new" and out.stat().st_mode & 0o777 == 0o640


def test_a_file_that_comes_up_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    with pytest.raises(OutputError, match="there already"), replacing(out) as (draft,):
        draft.write_bytes(b"ours")
        out.write_bytes(b"theirs")
    assert out.read_bytes() == b"theirs" and names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupt_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    first, second = tmp_path / "a.py", tmp_path / "a.safetensors"
    first.write_text("old")
    with pytest.raises(error), replacing(first, second, force=True) as (one, two):
        one.write_text("half")
        two.write_text("ha")
        raise error
    assert first.read_text() == "old" and names(tmp_path) == ["a.py"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"), replacing(out, force=True) as (draft,):
        draft.write_bytes(b"new")
    assert out.read_bytes() == b"old" and names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("had", [True, False])
def test_several_files_come_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had: bool, failing: int, linked: bool
) -> None:
    first, second = tmp_path / "a.py", tmp_path / "a.safetensors"
    if had:
        first.write_text("old a")
        second.write_text("old b")
    real, calls = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal calls
        if ".draft." in self.name:
            calls += 1
            if calls == failing:
                raise OSError(5, "Input/output error")
        return real(self, target)

    def no_links(self: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", replace)
    if not linked:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    with pytest.raises(OutputError, match="Input/output error"), replacing(first, second, force=True) as (one, two):
        one.write_text("new a")
        two.write_text("new b")
    assert names(tmp_path) == (["a.py", "a.safetensors"] if had else [])
    if had:
        assert (first.read_text(), second.read_text()) == ("old a", "old b")
    monkeypatch.undo()
    with replacing(first, second, force=True) as (one, two):
        one.write_text("new a")
        two.write_text("new b")
    assert (first.read_text(), second.read_text()) == ("new a", "new b")
    assert names(tmp_path) == ["a.py", "a.safetensors"]


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        check_new([tmp_path / "none" / "out.bin"])
    with pytest.raises(OutputError, match="is a folder"):
        check_new([tmp_path], force=True)
    with pytest.raises(OutputError, match="same name"), replacing(tmp_path / "a", tmp_path / "a"):
        pass
    with pytest.raises(OutputError, match="nothing was written"), replacing(tmp_path / "a"):
        pass


def test_a_link_keeps_pointing(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with replacing(link, force=True) as (draft,):
        draft.write_bytes(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
