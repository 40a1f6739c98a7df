"""Whole files or none: output goes to a temporary name in the same folder and is renamed when all of it is there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fuser.errors import FuserError


class OutputError(FuserError):
    """A file cannot be written: it is there already, or its folder is not; the message says which."""


def check_new(paths: Sequence[Path], *, force: bool = False) -> None:
    """Refuse at once what `replacing` would refuse when the work is done."""
    for path in paths:
        if path.is_dir():
            raise OutputError(f"cannot write '{path}': it is a folder")
        if not path.resolve().parent.is_dir():
            raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
        if path.exists() and not force:
            raise OutputError(f"'{path}' is there already: use force to overwrite it")


@contextmanager
def replacing(*paths: str | os.PathLike[str], force: bool = False) -> Iterator[tuple[Path, ...]]:
    """Temporary names beside `paths`, to write to; at the end of the block they become `paths`, all or none.

    Names end as those of `paths` do. What was there stays as it was until all drafts are on the disk, and also when
    the block raises, a rename fails or the program is interrupted.
    """
    targets = [Path(path) for path in paths]
    check_new(targets, force=force)
    targets = [target.resolve() for target in targets]
    if len(set(targets)) < len(targets):
        raise OutputError("two outputs have the same name")
    drafts = [target.with_name(f".{os.getpid()}.draft.{target.name}") for target in targets]
    try:
        yield tuple(drafts)
        for draft, target in zip(drafts, targets, strict=True):
            if not draft.is_file():
                raise OutputError(f"nothing was written for '{target}'")
            _settle(draft)
            if target.exists():
                shutil.copymode(target, draft)
        if not force:
            check_new(targets)
        _rename(drafts, targets)
    except OSError as error:
        raise OutputError(f"cannot write '{targets[0]}': {error.strerror or error}") from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Have the system write the file out now: a full disk shows here, not after the rename."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rename(drafts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Rename all drafts; when one rename fails, those before it are undone."""
    if len(targets) == 1:
        drafts[0].replace(targets[0])
        return
    kept = [target.with_name(f".{os.getpid()}.kept.{target.name}") for target in targets]
    done: list[tuple[Path, Path | None]] = []
    try:
        for draft, target, old in zip(drafts, targets, kept, strict=True):
            if target.exists():
                # a second name for the old file: `target` itself is there at every moment
                old.unlink(missing_ok=True)
                _second_name(target, old)
                done.append((target, old))
            else:
                done.append((target, None))
            draft.replace(target)
    except BaseException:
        for target, before in reversed(done):
            with contextlib.suppress(OSError):
                if before is None:
                    target.unlink(missing_ok=True)
                elif before.exists():
                    before.replace(target)
        raise
    finally:
        for old in kept:
            old.unlink(missing_ok=True)


def _second_name(path: Path, other: Path) -> None:
    try:
        other.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copy2(path, other)
