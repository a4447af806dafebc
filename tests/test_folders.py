"""Copying what is new of a folder: what rsync would do, without rsync."""

import os

import pytest

from salad.engines import folders
from salad.engines.folders import copy_new


def write(folder, files) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


FILES = {"a.txt": "a", "deep/er/b.txt": "b", "deep/manifest.json": "{}", ".hidden": "h", "n [1]#%.txt": "odd"}


def test_a_folder_arrives_whole_with_times_modes_and_without_links(tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    write(source, FILES)
    (source / "a.txt").chmod(0o750)
    os.utime(source / "a.txt", ns=(1, 1_600_000_000_123_456_789))
    (source / "link").symlink_to("a.txt")
    copy_new(source, to)
    assert content(to) == FILES and not (to / "link").exists()
    assert (to / "a.txt").stat().st_mtime_ns == (source / "a.txt").stat().st_mtime_ns
    assert (to / "a.txt").stat().st_mode & 0o777 == 0o750


def test_only_what_changed_is_copied_again_and_nothing_is_deleted(tmp_path, monkeypatch):
    source, to = tmp_path / "source", tmp_path / "to"
    write(source, FILES)
    copy_new(source, to)
    write(to, {"own.txt": "mine"})
    (source / "deep/er/b.txt").write_text("bigger")
    (source / "a.txt").unlink()
    copied, own = [], folders.shutil.copyfile
    monkeypatch.setattr(folders.shutil, "copyfile", lambda a, b: (copied.append(os.path.basename(a)), own(a, b)))
    copy_new(source, to)
    assert copied == ["b.txt"] and content(to) == FILES | {"deep/er/b.txt": "bigger", "own.txt": "mine"}


def test_a_flipped_bit_that_size_and_time_do_not_show_is_mended_where_bytes_are_compared(tmp_path):
    source, to = tmp_path / "source", tmp_path / "to"
    write(source, FILES)
    copy_new(source, to)
    at = (to / "a.txt").stat()
    (to / "a.txt").write_text("b")
    os.utime(to / "a.txt", ns=(at.st_atime_ns, at.st_mtime_ns))
    copy_new(source, to)
    assert (to / "a.txt").read_text() == "b"
    copy_new(source, to, compare=True)
    assert content(to) == FILES


def test_only_chosen_names_of_the_top_folder_and_a_single_file(tmp_path):
    source = tmp_path / "source"
    write(source, {"status.json": "1", "status-3.json": "2", "log.txt": "3", "config.json": "4", "deep/log.txt": "5"})
    copy_new(source, tmp_path / "to", ("status*.json", "log.txt"))
    assert content(tmp_path / "to") == {"status.json": "1", "status-3.json": "2", "log.txt": "3"}
    copy_new(source / "log.txt", tmp_path / "one" / "other.txt")
    assert content(tmp_path / "one") == {"other.txt": "3"}


def test_a_copy_that_is_cut_leaves_no_half_file_and_what_vouches_for_others_comes_last(tmp_path, monkeypatch):
    source, to = tmp_path / "source", tmp_path / "to"
    write(source, {"manifest.json": "{}", "unit-1.json": "{}", "unit-1.parquet": "x" * 100, "z/weights": "y" * 100})
    own, seen = folders.shutil.copyfile, []

    def full_after_one(a, b):
        seen.append(a.name)
        if len(seen) == 2:
            with open(b, "w") as half:
                half.write("y" * 50)
            raise OSError(28, "No space left on device", str(b))
        own(a, b)

    monkeypatch.setattr(folders.shutil, "copyfile", full_after_one)
    with pytest.raises(OSError, match="No space left"):
        copy_new(source, to)
    assert content(to) == {"unit-1.parquet": "x" * 100}
    copy_new(source, to)
    assert content(to) == content(source) and seen[-2:] == ["manifest.json", "unit-1.json"]
