"""Test where the state directory is, and which directories and files in it are used."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from cortecs_async._errors import ConfigurationError, JournalError
from cortecs_async._state_directory import StateFolder, check_state_directory, state_directory

READ, CREATE = os.O_RDONLY, os.O_RDWR | os.O_CREAT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory in a state directory."""
    with StateFolder(tmp_path / "state" / "folder", create=True):
        return tmp_path / "state" / "folder"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


class TestPlace:
    def test_the_argument_comes_before_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / "b"))
        monkeypatch.chdir(tmp_path)
        assert state_directory("a") == tmp_path / "a"
        assert state_directory(tmp_path / "a") == tmp_path / "a"
        assert state_directory(None) == tmp_path / "b"
        monkeypatch.setenv("CORTECS_STATE_DIR", " ")
        assert state_directory(None) == platformdirs.user_state_path("cortecs_async")

    @pytest.mark.parametrize("given", [7, b"a", "a\0b", ["a"]])
    def test_anything_but_a_path_is_an_error(self, given: str) -> None:
        with pytest.raises(ConfigurationError, match="state_dir must be a path"):
            state_directory(given)

    @pytest.mark.parametrize("how", ["raises", "returns a relative path"])
    def test_without_a_home_directory_every_use_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        def find(_: str) -> Path:
            if how == "raises":
                raise RuntimeError("could not determine the home directory")
            return Path("~/.local/state/cortecs_async")

        monkeypatch.delenv("CORTECS_STATE_DIR")
        monkeypatch.setattr(platformdirs, "user_state_path", find)
        path = state_directory(None)
        with pytest.raises(
            JournalError, match=r"home directory could not be determined\. Set .* CORTECS_STATE_DIR"
        ):
            check_state_directory(path / "journal")
        with (
            pytest.raises(OSError, match="home directory could not be determined"),
            StateFolder(path / "journal", create=True),
        ):
            pytest.fail("entered")

    def test_a_removed_working_directory_matters_only_for_a_relative_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "removed").mkdir()
        monkeypatch.chdir(tmp_path / "removed")
        (tmp_path / "removed").rmdir()
        assert state_directory(tmp_path) == tmp_path
        with pytest.raises(JournalError, match="working directory could not be determined"):
            check_state_directory(state_directory("a") / "journal")


class TestDirectory:
    @pytest.mark.parametrize("mask", [0, 0o002, 0o077, 0o777])
    @pytest.mark.usefixtures("umask")
    def test_whatever_is_created_belongs_to_its_user_alone(self, tmp_path: Path, mask: int) -> None:
        os.umask(mask)
        with StateFolder(tmp_path / "a" / "b" / "state" / "folder", create=True) as folder:
            os.close(folder.open("file", CREATE))
            os.close(folder.open("file", READ))
        for path in ("a", "a/b", "a/b/state", "a/b/state/folder"):
            assert mode(tmp_path / path) == 0o700
        assert mode(tmp_path / "a/b/state/folder/file") == 0o600

    def test_a_missing_directory_is_neither_created_nor_a_problem_for_readers(self, tmp_path: Path) -> None:
        check_state_directory(tmp_path / "state" / "folder")
        with pytest.raises(FileNotFoundError), StateFolder(tmp_path / "state" / "folder"):
            pytest.fail("entered")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("parent", ["/proc", "/proc/nowhere", "/dev/null", "file"])
    def test_one_that_cannot_be_created_is_an_error(self, tmp_path: Path, parent: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError):  # noqa: PT011  (its text is the system's)
            StateFolder(tmp_path / parent / "state" / "folder", create=True).__enter__()

    @pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
    @pytest.mark.parametrize("which", ["state", "state/folder"])
    def test_one_that_others_can_write_is_refused(
        self, tmp_path: Path, folder: Path, which: str, bits: int
    ) -> None:
        (tmp_path / which).chmod(bits)
        with pytest.raises(
            JournalError, match=f"other users can write {tmp_path / which} .*CORTECS_STATE_DIR"
        ):
            check_state_directory(folder)
        (tmp_path / which).chmod(0o755)
        check_state_directory(folder)

    @pytest.mark.parametrize("which", ["state", "state/folder"])
    def test_one_of_another_user_is_refused(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        fstat, other = os.fstat, (tmp_path / which).stat().st_ino

        def of_another_user(fd: int) -> os.stat_result:
            status = fstat(fd)
            return os.stat_result([*status[:4], 4321, *status[5:]]) if status.st_ino == other else status

        monkeypatch.setattr(os, "fstat", of_another_user)
        with pytest.raises(
            JournalError, match=f"{tmp_path / which} belongs to user id 4321, and .*STATE_DIR"
        ):
            check_state_directory(folder)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_root_refuses_a_path_through_a_directory_of_another_user(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        os.chown(tmp_path / "home", 4321, 4321)
        with pytest.raises(OSError, match="home belongs to user id 4321, and this process runs as root"):
            StateFolder(tmp_path / "home" / ".local" / "state" / "folder", create=True).__enter__()
        assert list((tmp_path / "home").iterdir()) == []
        # The user may have placed a link there.
        (tmp_path / "home" / "state").symlink_to(tmp_path)
        with pytest.raises(JournalError, match="home belongs to user id 4321"):
            check_state_directory(tmp_path / "home" / "state" / "folder")

    def test_the_system_s_directories_above_it_do_not_matter(self, tmp_path: Path) -> None:
        (tmp_path / "tmp").mkdir()
        (tmp_path / "tmp").chmod(0o1777)
        with StateFolder(tmp_path / "tmp" / "state" / "folder", create=True):
            check_state_directory(tmp_path / "tmp" / "state" / "folder")

    def test_the_state_directory_may_be_a_link_and_a_directory_in_it_may_not(
        self, tmp_path: Path, folder: Path
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "state")
        check_state_directory(tmp_path / "link" / "folder")
        (tmp_path / "state" / "linked").symlink_to(folder)
        with pytest.raises(JournalError, match="linked is not a directory"):
            check_state_directory(tmp_path / "state" / "linked")


class TestFile:
    def test_a_regular_file_of_this_user_is_opened(self, folder: Path) -> None:
        (folder / "file").write_bytes(b"text")
        with StateFolder(folder) as opened:
            fd = opened.open("file", READ)
            assert os.read(fd, 9) == b"text"
            assert not os.get_inheritable(fd)
            os.close(fd)
            with pytest.raises(FileNotFoundError):
                opened.open("missing", READ)
            opened.rename("file", "renamed")
            assert opened.names() == ["renamed"]
            opened.remove("renamed")
        assert list(folder.iterdir()) == []

    def test_a_file_that_would_fill_the_memory_is_not_opened(self, folder: Path) -> None:
        with (folder / "file").open("wb") as file:
            file.truncate((256 << 20) + 1)
        with StateFolder(folder) as opened, pytest.raises(OSError, match="file is larger than 256 MiB"):
            opened.open("file", READ)

    @pytest.mark.parametrize("flags", [READ, CREATE])
    @pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "directory", "socket", "terminal"])
    def test_anything_else_is_neither_opened_nor_followed(self, folder: Path, kind: str, flags: int) -> None:
        path, target = folder / "file", folder.parent / "target"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.path.relpath(path))
        elif kind == "terminal":
            path.symlink_to("/dev/tty")
        else:
            path.symlink_to(target)
            if kind == "link":
                target.write_bytes(b"text")
        with StateFolder(folder) as opened, pytest.raises(OSError, match="file is not a regular file"):
            opened.open("file", flags)
        assert target.exists() == (kind == "link")

    @pytest.mark.parametrize("kind", ["pipe", "link"])
    def test_a_file_that_is_replaced_before_it_is_opened_is_refused(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        path, os_open = folder / "file", os.open
        path.write_bytes(b"")

        def replaced(name: str, *args: int, dir_fd: int | None = None) -> int:
            if name == "file":
                path.unlink()
                if kind == "pipe":
                    os.mkfifo(path)
                else:
                    path.symlink_to(folder.parent)
            return os_open(name, *args, dir_fd=dir_fd)

        with StateFolder(folder) as opened:
            monkeypatch.setattr(os, "open", replaced)
            with pytest.raises(OSError):  # noqa: PT011  (the system's text, for the link)
                opened.open("file", READ)

    def test_a_file_of_another_user_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "file").write_bytes(b"")
        with StateFolder(folder) as opened:
            monkeypatch.setattr(os, "geteuid", lambda: 4321)
            with pytest.raises(OSError, match="file belongs to user id"):
                opened.open("file", READ)

    def test_only_a_socket_is_removed_as_one(self, folder: Path) -> None:
        with StateFolder(folder) as opened:
            opened.remove_socket("socket")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(os.path.relpath(folder / "socket"))
            opened.remove_socket("socket")
            assert opened.names() == []
            (folder / "socket").write_bytes(b"text")
            with pytest.raises(OSError, match="socket is not a socket"):
                opened.remove_socket("socket")
        assert (folder / "socket").read_bytes() == b"text"


def test_a_platform_without_file_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(JournalError, match="file locks are not supported"):
        check_state_directory(folder)
