"""The config file: which profile is used, which files are refused, and how a profile is written."""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import pickle
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from _grids import on_one_backend
from _leaks import leaks
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, ConfigurationError, Credentials, InstanceHandle, Secret, _profiles
from cortecs_async._credentials import resolve_sources
from cortecs_async._profiles import Profile, config_file, load_profile, remove_profile, save_profile
from cortecs_async._state_directory import StateFolder
from cortecs_async.errors import MissingCredentialsError, RequestError

HUSH = "t0p-s3cret"
WORK = f'[profiles.work]\nclient_id = "w"\nclient_secret = "{HUSH}"\napi_key = "w-key"\n'
HOME = '[profiles.default]\nclient_id = "h"\nclient_secret = "h-secret"\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the config file."""
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("CORTECS_CONFIG_FILE", str(path))
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


class TestPrecedence:
    @staticmethod
    async def credentials(**options: Any) -> Credentials:
        async with AsyncCortecs(guard="off", journal="off", **options) as client:
            return await client._settings.credential_provider()

    @on_one_backend
    async def test_named_profile_wins_over_the_environment(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, WORK + 'api_base_url = "https://work.test/v1"\n' + HOME)
        monkeypatch.setenv("CORTECS_CLIENT_ID", "e")
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", "e-secret")
        monkeypatch.setenv("CORTECS_API_BASE_URL", "https://env.test/v1")
        monkeypatch.setenv("CORTECS_PROFILE", "work")
        assert (await self.credentials()).client_id == "e"
        async with AsyncCortecs(profile="work", guard="off", journal="off") as client:
            found = await client._settings.credential_provider()
            assert found == Credentials(client_id="w", client_secret=HUSH)
            assert client._settings.api_base_url == "https://work.test/v1"
            monkeypatch.setenv("OPENAI_API_KEY", "e-key")
            assert client._settings.sources.inference_key_origin() == f'profile "work" in {file}'

    @on_one_backend
    async def test_profile_is_used_without_credentials_in_the_environment(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, WORK + HOME)
        assert (await self.credentials()).client_id == "h"
        assert (await self.credentials(client_id="a", client_secret="b")).client_id == "a"
        monkeypatch.setenv("CORTECS_PROFILE", "work")
        assert (await self.credentials()).client_id == "w"
        # A variable for the address wins over the profile, as any variable does.
        monkeypatch.setenv("CORTECS_API_BASE_URL", "https://env.test/v1")
        async with AsyncCortecs(guard="off", journal="off") as client:
            assert client._settings.api_base_url == "https://env.test/v1"

    @pytest.mark.parametrize("name", ["CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"])
    @on_one_backend
    async def test_half_of_the_credentials_is_never_completed_by_a_profile(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        write(file, HOME)
        monkeypatch.setenv(name, "e")
        with pytest.raises(MissingCredentialsError) as caught:
            await self.credentials()
        assert len(caught.value.missing) == 1
        assert caught.value.missing[0].upper() != name.removeprefix("CORTECS_")
        # Nor is the inference key of the profile used, which would go to another account.
        monkeypatch.setenv("CORTECS_CLIENT_ID", "e")
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", "e-secret")
        write(file, WORK.replace("work", "default"))
        async with AsyncCortecs(guard="off", journal="off") as client:
            assert "No inference API key" in client._settings.sources.inference_key_problem()

    @pytest.mark.parametrize(
        "other", [{"client_id": "a"}, {"client_secret": "b"}, {"credential_provider": print}]
    )
    def test_profile_and_credentials_contradict_each_other(self, file: Path, other: dict[str, Any]) -> None:
        write(file, WORK)
        with pytest.raises(ConfigurationError, match="not both"):
            AsyncCortecs(profile="work", **other)

    @pytest.mark.parametrize("profile", ["", " ", 5])
    def test_profile_is_a_name(self, profile: Any) -> None:
        with pytest.raises(ConfigurationError, match="must be a profile name"):
            AsyncCortecs(profile=profile)

    def test_unknown_profile_suggests_a_near_one(self, file: Path) -> None:
        write(file, WORK)
        with pytest.raises(ConfigurationError, match=r'no profile "wrok"\. Did you mean work\?'):
            AsyncCortecs(profile="wrok")
        with pytest.raises(ConfigurationError, match="login --profile other"):
            AsyncCortecs(profile="other")

    @on_one_backend
    async def test_incomplete_profile_names_what_is_missing(self, file: Path) -> None:
        write(file, '[profiles.default]\nclient_id = "h"\n')
        with pytest.raises(
            MissingCredentialsError, match=r'profile "default" in .* has no client secret\. Run'
        ) as caught:
            await self.credentials()
        assert (caught.value.missing, caught.value.profile) == (("client_secret",), "default")

    @on_one_backend
    async def test_anonymous_client_uses_no_credentials(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, 'api_base_url = "https://home.test/v1"\n' + HOME, 0o644)  # refused by others
        monkeypatch.setenv("CORTECS_CLIENT_ID", "a\nb")
        async with AsyncCortecs(anonymous=True, guard="off", journal="off") as client:
            findings = {each.name: each for each in await client.diagnose()}
            assert findings["credentials"].ok
            assert findings["credentials"].detail == "none (anonymous=True)"
            assert findings["token"].ok
            with pytest.raises(ConfigurationError, match="anonymous=True"):
                await client.instances.list()

    @on_one_backend
    async def test_anonymous_client_uses_the_base_url_of_a_profile_that_is_named(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, WORK + 'api_base_url = "https://work.test/v1"\n')
        options: dict[str, Any] = {"anonymous": True, "guard": "off", "journal": "off"}
        async with AsyncCortecs(profile="work", **options) as client:
            assert client._settings.api_base_url == "https://work.test/v1"
        monkeypatch.setenv("CORTECS_PROFILE", "work")
        async with AsyncCortecs(**options) as client:
            assert client._settings.api_base_url == "https://work.test/v1"

    @pytest.mark.parametrize("has_url", [False, True])
    @on_one_backend
    async def test_advice_names_the_profile_that_is_used(self, file: Path, *, has_url: bool) -> None:
        url = "https://work.test/v1"
        write(file, WORK + (f'api_base_url = "{url}"\n' if has_url else ""))

        def unreachable(_: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        def rejected(_: httpx.Request) -> httpx.Response:
            return httpx.Response(401, json={"message": "no"})

        profile, place = f'profile "work" in {file}', "api_base_url (CORTECS_API_BASE_URL)"
        for handler, advice in (
            (rejected, f"Check {profile}{'' if has_url else f' and {place}'}, or run `cortecs-async login"),
            (unreachable, f"Check the network and {f'the base URL of {profile}' if has_url else place}."),
        ):
            transport = httpx.MockTransport(handler)
            async with (
                httpx.AsyncClient(transport=transport) as http,
                AsyncCortecs(
                    profile="work", http_client=http, max_retries=0, guard="off", journal="off"
                ) as client,
            ):
                with pytest.raises(RequestError) as caught:
                    await client.user.balance()
            assert advice in str(caught.value)

    @pytest.mark.parametrize("name", ["CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"])
    def test_one_variable_alone_is_explained(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        (other,) = {"CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"} - {name}
        nothing: dict[str, Any] = {"client_secret": None, "provider": None, "profile": None}
        monkeypatch.setenv(name, "x")
        assert resolve_sources(client_id=None, **nothing)[0].missing == (
            f"{name} is set, but {other} is not. Set it, or unset {name} to use your profile."
        )
        monkeypatch.delenv(name)
        assert resolve_sources(client_id="x", **nothing)[0].missing == (
            "client_id was passed, but no client secret. Pass client_secret= to AsyncCortecs, or set "
            "CORTECS_CLIENT_SECRET."
        )

    def test_handle_uses_the_key_of_the_profile(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(file, WORK)
        monkeypatch.setenv("CORTECS_PROFILE", "work")
        handle = InstanceHandle(instance_id="i", base_url="https://x.test/v1", model="m", account="a")
        assert handle.openai_kwargs()["api_key"] == "w-key"
        monkeypatch.setenv("OPENAI_API_KEY", "e-key")
        assert handle.openai_kwargs()["api_key"] == "e-key"

    def test_where_the_file_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert config_file() is None  # /dev/null, as in all tests
        monkeypatch.setenv("CORTECS_CONFIG_FILE", "")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        if sys.platform == "linux":
            assert config_file() == tmp_path / "cortecs" / "config.toml"


class TestHandle:
    @on_one_backend
    async def test_handle_uses_the_key_of_its_client(
        self, file: Path, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work = WORK.replace('"w"', '"emulator-client"').replace(HUSH, "emulator-secret")
        write(file, work + HOME + 'api_key = "h-key"\n')
        monkeypatch.setenv("OPENAI_API_KEY", "e-key")
        async with (
            world() as (emu, other),
            AsyncCortecs(
                profile="work",
                api_base_url=emu.api_base_url,
                http_client=other._wiring.http_client,
                guard="off",
                journal="off",
            ) as client,
        ):
            async with client.instance(MODEL, HARDWARE) as inst:
                handle = inst.handle
            handles = [handle, await client.acquire(MODEL, HARDWARE, require_key=True), copy.deepcopy(handle)]
        assert [each.openai_kwargs()["api_key"] for each in handles] == ["w-key"] * 3
        # Where it is sent, there is no client.
        sent = [pickle.loads(pickle.dumps(handle)), InstanceHandle.from_json(handle.to_json())]  # noqa: S301
        assert [each.openai_kwargs()["api_key"] for each in sent] == ["e-key"] * 2
        assert sent == [handle, handle]
        assert {repr(each) for each in sent} == {repr(handle)}
        assert "profile" not in handle.to_json()

    @pytest.mark.parametrize("kind", ["broken", "missing profile", "line break"])
    @pytest.mark.parametrize("given", [None, "k"])
    def test_config_file_does_not_matter_for_a_handle_that_has_its_key(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, given: str | None
    ) -> None:
        if kind == "broken":
            write(file, "[[[")
        elif kind == "missing profile":
            monkeypatch.setenv("CORTECS_PROFILE", "gone")
        else:
            monkeypatch.setenv("CORTECS_CLIENT_ID", "a\nb")
        if given is None:
            monkeypatch.setenv("CORTECS_API_KEY", "k")
        handle = InstanceHandle(instance_id="i", base_url="https://x.test/v1", model="m", account="a")
        assert handle.openai_kwargs(api_key=given)["api_key"] == "k"


class TestFile:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
    def test_file_that_others_can_read_is_refused(self, file: Path, mode: int) -> None:
        write(file, HOME, mode)
        with pytest.raises(ConfigurationError, match=rf"\(mode {mode:o}\): chmod 600"):
            AsyncCortecs()
        # It is not read if it is not needed.
        given = {"client_id": "a", "client_secret": Secret("b"), "provider": None, "profile": None}
        assert resolve_sources(**given)[0].profile is None  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
    def test_only_a_regular_file_is_read(self, file: Path, tmp_path: Path, kind: str) -> None:
        write(tmp_path / "other", HOME)
        file.parent.mkdir(mode=0o700)
        if kind == "link":
            file.symlink_to(tmp_path / "other")
        elif kind == "pipe":
            os.mkfifo(file, 0o600)
        else:
            file.mkdir()
        with pytest.raises(ConfigurationError, match="not a regular file"):
            load_profile()

    def test_file_of_another_user_is_refused(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(file, HOME)
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(ConfigurationError, match="belongs to user id"):
            load_profile()

    def test_directory_that_others_can_write_is_refused(self, file: Path) -> None:
        write(file, HOME)
        file.parent.chmod(0o777)
        with pytest.raises(ConfigurationError, match=r"other users can write .*: chmod go-w "):
            load_profile()

    def test_directory_above_may_be_writable_by_others(self, file: Path) -> None:
        # As /home, which belongs to root, and ~/.config with umask 002.
        file.parent.parent.chmod(0o775)
        save_profile(profile(file))
        assert load_profile("work") == profile(file)

    def test_password_in_a_base_url_is_not_shown(self, file: Path) -> None:
        assert HUSH not in repr(profile(file, api_base_url=f"http://user:{HUSH}@x"))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (HOME + f'api_key = "{HUSH}\n', "config.toml, line 4: "),
            (HOME + f"client_secret = {HUSH}\n", "config.toml, line 4: "),
            ("[[[", "config.toml, line 1: "),
            (f'profiles = "{HUSH}"', "profiles must be tables"),
            (f'[profiles]\ndefault = "{HUSH}"', r"profiles.default must be a table"),
            ("[profiles.default]\nclient_secret = 5", r"profiles.default.client_secret must be a string"),
            ('[profiles.default]\nkeyring = ["password"]', r"profiles.default.keyring must be a list"),
        ],
    )
    def test_mistake_is_named_with_its_place(self, file: Path, text: str, problem: str) -> None:
        write(file, text)
        with pytest.raises(ConfigurationError, match=problem) as caught:
            AsyncCortecs()
        assert leaks(caught.value, HUSH) == []

    def test_bytes_that_are_no_text(self, file: Path) -> None:
        write(file, "")
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigurationError, match="not valid UTF-8"):
            load_profile()

    def test_unknown_key_is_warned_about_once(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        write(file, f'[profile.x]\n{HOME}client_sekret = "{HUSH}"\nnonsense = 1\n')
        for _ in range(2):
            assert load_profile() == Profile(
                name="default", file=file, client_id="h", client_secret=Secret("h-secret")
            )
        warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert [each.partition(f" in {file}. ")[::2] for each in warnings] == [
            ("Ignoring 'profile'", "Did you mean profiles?"),
            ("Ignoring 'profiles.default.client_sekret'", "Did you mean client_secret?"),
            (
                "Ignoring 'profiles.default.nonsense'",
                "The known keys are client_id, client_secret, api_key, api_base_url, keyring",
            ),
        ]
        assert HUSH not in caplog.text


def profile(file: Path, **values: Any) -> Profile:
    defaults = {"name": "work", "client_id": "w", "client_secret": Secret(HUSH), "api_key": Secret("w-key")}
    return Profile(**{**defaults, "file": file, **values})


class TestWriting:
    def test_new_file_is_private_from_the_beginning(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes: list[int] = []
        rename = StateFolder.rename

        def seen(folder: StateFolder, name: str, new_name: str) -> None:
            modes.append(stat.S_IMODE((folder.path / name).stat().st_mode))
            rename(folder, name, new_name)

        monkeypatch.setattr(StateFolder, "rename", seen)
        umask = os.umask(0)
        try:
            save_profile(profile(file))
        finally:
            os.umask(umask)
        assert modes == [0o600]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert "plain text" in file.read_text()
        assert load_profile("work") == profile(file)
        assert [each.name for each in file.parent.iterdir()] == ["config.toml"]

    def test_all_else_in_the_file_stays(self, file: Path) -> None:
        write(file, f"# mine\n{WORK}# of home\n{HOME}future = 1\n\n[other]\nx = 1")
        save_profile(profile(file, client_id='w"\\é\x7f'))
        save_profile(profile(file, name="new"))
        text = file.read_text()
        assert text.startswith("# mine\n[profiles.work]\n")
        assert f"# of home\n{HOME}future = 1\n\n[other]\nx = 1\n" in text
        found = load_profile("work")
        assert found is not None
        assert found.client_id == 'w"\\é\x7f'
        assert load_profile("new") == profile(file, name="new")
        assert remove_profile("new") == profile(file, name="new")
        assert remove_profile("new") is None
        assert "[profiles.new]" not in file.read_text()
        assert load_profile("default") is not None

    def test_simultaneous_logins_lose_no_profile(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        has_reached_the_lock = threading.Event()
        rewrite, flock = _profiles._rewrite, fcntl.flock

        def write_second() -> None:
            try:
                save_profile(profile(file, name="second"))
            finally:
                has_reached_the_lock.set()

        second = threading.Thread(target=write_second)

        def noted(fd: int, kind: int) -> None:
            if threading.current_thread() is second:
                has_reached_the_lock.set()
            flock(fd, kind)

        def first_waits_for_second(*args: Any) -> None:
            if threading.current_thread() is not second:
                second.start()
                has_reached_the_lock.wait()  # or its end, without a lock
            rewrite(*args)

        monkeypatch.setattr(fcntl, "flock", noted)
        monkeypatch.setattr(_profiles, "_rewrite", first_waits_for_second)
        save_profile(profile(file, name="first"))
        second.join()
        assert set(_profiles.profile_names()) == {"first", "second"}

    def test_form_that_cannot_be_changed_is_left_alone(self, file: Path) -> None:
        text = 'profiles = { work = { client_id = "w" } }\n'
        write(file, text)
        with pytest.raises(ConfigurationError, match="cannot be edited automatically"):
            save_profile(profile(file))
        assert file.read_text() == text

    def test_failed_write_leaves_the_file_as_it_was(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, HOME)

        def full(_: int) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="cannot be written: no space left"):
            save_profile(profile(file))
        assert file.read_text() == HOME
        assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


class FakeKeyring:
    """Stands for the package `keyring` and its backend."""

    def __init__(self, priority: float = 5.0) -> None:
        self.entries: dict[tuple[str, str], str] = {}
        self.priority = priority
        self.problem: Exception | None = None

    def get_keyring(self) -> FakeKeyring:
        return self

    def set_password(self, service: str, name: str, value: str) -> None:
        self._check()
        self.entries[service, name] = value

    def get_password(self, service: str, name: str) -> str | None:
        self._check()
        return self.entries.get((service, name))

    def delete_password(self, service: str, name: str) -> None:
        self._check()
        del self.entries[service, name]

    def _check(self) -> None:
        if self.problem is not None:
            raise self.problem


class TestKeyring:
    @pytest.fixture
    def keyring(self, monkeypatch: pytest.MonkeyPatch) -> FakeKeyring:
        fake = FakeKeyring()
        monkeypatch.setitem(sys.modules, "keyring", fake)
        return fake

    def test_secrets_are_in_the_keyring_and_not_in_the_file(self, file: Path, keyring: FakeKeyring) -> None:
        saved = save_profile(profile(file))
        assert saved.in_keyring == ("client_secret", "api_key")
        assert not any(secret in file.read_text() for secret in (HUSH, "w-key"))
        assert set(keyring.entries.values()) == {HUSH, "w-key"}
        found = load_profile("work")
        assert found is not None
        assert found.secret("client_secret") == Secret(HUSH)
        assert "client_secret and api_key in the keyring" in str(found)
        remove_profile("work")
        assert keyring.entries == {}

    def test_a_keyring_that_fails_halfway_keeps_no_secret(
        self, file: Path, keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def store(service: str, name: str, value: str) -> None:
            if name.endswith("api_key"):
                raise RuntimeError
            keyring.entries[service, name] = value

        monkeypatch.setattr(keyring, "set_password", store)
        assert save_profile(profile(file)).in_keyring == ()
        assert keyring.entries == {}

    def test_a_file_that_cannot_be_edited_leaves_no_secret_in_the_keyring(
        self, file: Path, keyring: FakeKeyring
    ) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text('profiles = {work = {client_id = "x", client_secret = "y"}}')
        with pytest.raises(ConfigurationError, match="cannot be edited"):
            save_profile(profile(file))
        assert keyring.entries == {}

    @on_one_backend
    async def test_client_reads_the_keyring_when_it_needs_the_secret(
        self, file: Path, keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_profile(profile(file, name="default"))

        async def inline(function: Callable[..., Any], *args: Any) -> Any:
            return function(*args)

        monkeypatch.setattr("anyio.to_thread.run_sync", inline)  # virtual time does not wait for threads
        async with AsyncCortecs(guard="off", journal="off") as client:
            assert client._settings.sources.inference_key_problem() == ""
            found = await client._settings.credential_provider()
            assert found == Credentials(client_id="w", client_secret=HUSH)
            # It is read once: it may wait for its user.
            keyring.problem = RuntimeError()
            assert client._settings.sources.inference_key_problem() == ""

    def test_changed_credentials_leave_no_old_entries(self, file: Path, keyring: FakeKeyring) -> None:
        save_profile(profile(file))
        save_profile(profile(file, client_id="other", api_key=Secret("")))
        assert list(keyring.entries.values()) == [HUSH]

    @pytest.mark.parametrize("how", ["raises", "no backend", "forgets"])
    def test_without_a_working_keyring_the_file_has_the_secrets(
        self, file: Path, keyring: FakeKeyring, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if how == "raises":
            keyring.problem = RuntimeError(HUSH)
        elif how == "no backend":
            keyring.priority = 0
        else:
            monkeypatch.setattr(keyring, "get_password", lambda *_: None)
        assert save_profile(profile(file)).in_keyring == ()
        assert load_profile("work") == profile(file)

    def test_keyring_that_fails_later_is_named(
        self, file: Path, keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = save_profile(profile(file))
        keyring.problem = RuntimeError(HUSH)
        with pytest.raises(
            ConfigurationError, match=r"the keyring raised RuntimeError\..*login --profile work"
        ) as caught:
            found.secret("client_secret")
        assert HUSH not in str(caught.value)
        keyring.problem = None
        keyring.entries.clear()
        with pytest.raises(ConfigurationError, match="no such entry"):
            found.secret("client_secret")
        monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace())
        with pytest.raises(ConfigurationError, match=r"Run: python -m pip install .*\[keyring\]"):
            found.secret("api_key")
