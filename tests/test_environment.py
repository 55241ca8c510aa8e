"""The proxies and certificates of the environment: all spellings in use, and clear errors."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import certifi
import pytest

from cortecs_async import AsyncCortecs, ConfigurationError
from cortecs_async._environment import Environment

API = "https://api.test/v1"
PROXY = "http://someone:passw0rd@proxy.test:3128"


def is_proxied(url: str) -> bool:
    return Environment.read().proxy_for(url) is not None


class TestProxies:
    @pytest.mark.parametrize(
        ("variables", "url", "found"),
        [
            ({"HTTPS_PROXY": "http://a:1"}, API, ("HTTPS_PROXY", "http://a:1")),
            ({"https_proxy": "http://a:1"}, API, ("https_proxy", "http://a:1")),
            (
                {"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"},
                API,
                ("https_proxy", "http://a:1"),
            ),
            ({"https_proxy": "", "HTTPS_PROXY": "http://b:1"}, API, None),
            ({"ALL_PROXY": "http://a:1"}, API, ("ALL_PROXY", "http://a:1")),
            ({"ALL_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:1"}, API, ("HTTPS_PROXY", "http://b:1")),
            ({"HTTP_PROXY": "http://a:1"}, API, None),
            ({"HTTP_PROXY": "http://a:1"}, "http://api.test", ("HTTP_PROXY", "http://a:1")),
            ({"HTTPS_PROXY": "  a:1\n"}, API, ("HTTPS_PROXY", "http://a:1")),
            ({"HTTPS_PROXY": "HTTPS://a:1"}, API, ("HTTPS_PROXY", "HTTPS://a:1")),
            ({"HTTPS_PROXY": " "}, API, None),
            # Only the proxy that is used must be usable.
            ({"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "socks://b"}, API, ("HTTPS_PROXY", "http://a:1")),
        ],
        ids=repr,
    )
    def test_are_found(
        self,
        variables: dict[str, str],
        url: str,
        found: tuple[str, str] | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        proxy = Environment.read().proxy_for(url)
        assert (None if proxy is None else (proxy.variable, proxy.url.reveal())) == found

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            ("gopher://user:passw0rd@proxy.test", "has the scheme 'gopher'.* must begin with http://"),
            ("socks://proxy.test", "has the scheme 'socks'"),
            ("http://[::1", "is not a valid URL"),
            ("http://user:passw0rd@proxy.test:port", "is not a valid URL"),
            ("http://user:passw0rd@proxy.test:0", "is not a valid URL"),
            ("http://proxy test:3128", "is not a valid URL"),
            ("http://", "is not a valid URL"),
            ("http://prü..xy", "is not a URL that httpx can use"),
        ],
    )
    def test_that_cannot_be_used_are_named(
        self, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", value)
        with pytest.raises(ConfigurationError, match=f"^HTTPS_PROXY {problem}") as caught:
            AsyncCortecs("a", "b", api_base_url=API)
        assert "passw0rd" not in str(caught.value)

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    def test_without_the_package_for_socks_say_what_to_install(
        self, scheme: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://proxy.test:1080")
        monkeypatch.setitem(sys.modules, "socksio", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigurationError, match=r"^ALL_PROXY .*pip install 'httpx\[socks\]'"):
            AsyncCortecs("a", "b", api_base_url=API)


class TestNoProxy:
    @pytest.mark.parametrize(
        ("entries", "proxied", "direct"),
        [
            ("api.test", "https://other.test https://my-api.test", "https://api.test https://a.api.test"),
            (".api.test", "https://my-api.test", "https://api.test https://a.api.test"),
            ("*.api.test", "https://my-api.test", "https://a.api.test"),
            ("API.TEST.", "https://other.test", "https://api.test https://API.test."),
            ("api.test:8443", "https://api.test", "https://api.test:8443"),
            ("api.test:443", "https://api.test:8443", "https://api.test"),
            ("http://api.test", "https://api.test", "http://api.test"),
            ("all://api.test/", "https://other.test", "http://api.test"),
            ("*", "", "https://api.test https://10.1.2.3 https://[fc00::1]"),
            ("a.test, api.test ,\tb.test", "https://c.test", "https://api.test https://b.test"),
            ("a.test api.test", "https://c.test", "https://a.test https://api.test"),
            (",,", "https://api.test", ""),
            ("10.0.0.0/8", "https://11.0.0.1 https://ten.test", "https://10.1.2.3"),
            ("10.1.2.3/8", "https://11.0.0.1", "https://10.9.9.9"),
            ("10.1.2.*", "https://10.1.3.3", "https://10.1.2.3"),
            ("10.1.2.3:8443", "https://10.1.2.3", "https://10.1.2.3:8443"),
            ("fc00::/7,fe80::/10", "https://[2001:db8::1]", "https://[fc00::1] https://[fe80::1]"),
            ("[fc00::]/7", "https://[2001:db8::1]", "https://[fd00::1]"),
            ("2001:db8::1", "https://[2001:db8::2]", "https://[2001:db8::1] https://[2001:DB8::1]:8443"),
            ("[2001:db8::1]", "https://[2001:db8::2]", "https://[2001:db8::1]"),
            ("[2001:db8::1]:8443", "https://[2001:db8::1]", "https://[2001:db8::1]:8443"),
            # As OrbStack and Docker Desktop set it.
            ("localhost,127.0.0.0/8,::1/128", "https://api.test", ""),
        ],
    )
    def test_takes_every_form_that_is_in_use(
        self,
        entries: str,
        proxied: str,
        direct: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", PROXY)
        monkeypatch.setenv("NO_PROXY", entries)
        assert [url for url in proxied.split() if not is_proxied(url)] == []
        assert [url for url in direct.split() if is_proxied(url)] == []
        assert caplog.records == []

    @pytest.mark.parametrize("entry", ["::1/999", "10.0.0.0/33", "[::1", "http://[", "<local>", "a/b", "a:b"])
    def test_skips_an_entry_that_it_cannot_read(
        self, entry: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", PROXY)
        monkeypatch.setenv("NO_PROXY", f"api.test,{entry}")
        client = AsyncCortecs("a", "b", api_base_url=API)
        assert client._settings.proxy is None
        client._closed = True
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert vars(record)["cortecs_variable"] == "NO_PROXY"
        assert repr(entry) in record.getMessage()

    def test_does_not_show_a_password(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", PROXY)
        monkeypatch.setenv("NO_PROXY", "user:passw0rd@[")
        Environment.read()
        assert "NO_PROXY" in caplog.text
        assert "passw0rd" not in caplog.text

    def test_does_not_matter_without_a_proxy(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("NO_PROXY", "::1/999")
        assert Environment.read() == Environment()
        assert caplog.records == []


class TestCertificates:
    def test_a_pipe_is_refused_because_it_might_never_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        # Opening it would block until another process writes to it.
        monkeypatch.setattr("ssl.create_default_context", lambda **_: pytest.fail("read"))
        with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE .* not a regular file"):
            Environment(cafile=str(tmp_path / "pipe")).tls_context()

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("ca.pem").write_bytes(Path(certifi.where()).read_bytes())
        Path("empty.pem").touch()
        Path("folder").mkdir()
        Path("hashed").mkdir()
        Path("hashed/0a1b2c3d.0").symlink_to("../ca.pem")

    def test_of_a_relative_path_are_those_of_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", " ca.pem\n")
        monkeypatch.setenv("SSL_CERT_DIR", "hashed")
        found = Environment.read()
        assert (found.cafile, found.capath) == (str(tmp_path / "ca.pem"), str(tmp_path / "hashed"))
        monkeypatch.chdir("/")
        context = found.tls_context()
        assert context is not None
        assert len(context.get_ca_certs()) > 100

    def test_of_the_library_count_if_the_environment_names_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", "")
        monkeypatch.setenv("SSL_CERT_DIR", " ")
        assert Environment.read().tls_context() is None

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("SSL_CERT_FILE", "stale.pem", "No such file or directory"),
            ("SSL_CERT_FILE", "empty.pem", "contains no certificate"),
            ("SSL_CERT_FILE", "folder", "cannot be used"),
            ("SSL_CERT_DIR", "stale", "no certificates were found.*openssl rehash"),
            ("SSL_CERT_DIR", "folder", "no certificates were found.*openssl rehash"),
            ("SSL_CERT_DIR", "ca.pem", "no certificates were found.*openssl rehash"),
        ],
    )
    def test_that_cannot_be_used_are_named(
        self, name: str, value: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"^{name} is '{tmp_path}/{value}'.*{problem}"):
            AsyncCortecs("a", "b", api_base_url=API)
        # Plain http on this machine needs no certificates.
        client = AsyncCortecs("a", "b", api_base_url="http://127.0.0.1:9/v1")
        client._closed = True

    def test_of_a_directory_that_does_not_exist_are_skipped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("SSL_CERT_DIR", f"stale:hashed:{tmp_path}/hashed")
        assert Environment.read().capath == f"{tmp_path}/hashed:{tmp_path}/hashed"
        (record,) = caplog.records
        assert vars(record)["cortecs_variable"] == "SSL_CERT_DIR"
        assert vars(record)["cortecs_entry"] == f"{tmp_path}/stale"

    def test_of_a_removed_working_directory_are_an_error_only_if_they_are_relative(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", "ca.pem")
        monkeypatch.chdir("folder")
        (tmp_path / "folder").rmdir()
        with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE is 'ca\.pem'"):
            AsyncCortecs("a", "b", api_base_url=API)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert Environment.read().tls_context() is not None


def test_the_reaper_gets_it_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HTTPS_PROXY": PROXY,
        "ALL_PROXY": "socks5://other.test",
        "NO_PROXY": "::1/128,a.test",
        "SSL_CERT_FILE": "ca.pem",
        "SSL_CERT_DIR": "/etc/ssl/certs",
    }.items():
        monkeypatch.setenv(name, value)
    found = Environment.read()
    assert Environment.from_data(json.loads(json.dumps(found.to_data()))) == found
    assert "passw0rd" not in repr(found)
