"""Error messages about options and endpoints: each names the option, its place, the cause and the remedy."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import attrs
import pytest
from twisted.internet.defer import fail
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.scripts._twistd_unix import ServerOptions

from chatrelay.app import endpoints
from chatrelay.app.endpoints import BadEndpointError, CannotOpenError, NamedEndpoint, check
from chatrelay.app.twistd import Options
from chatrelay.config.sources import TWISTD_OPTIONS

URL = ("--auth-url", "http://127.0.0.1/session")
END = " (all options: twistd chatrelay --help)"


def refused(*options: str) -> str:
    """Return the error message for a command line, without the common beginning and end."""
    with pytest.raises(SystemExit) as end:
        Options().parseOptions([*URL, *options])
    said = str(end.value.code)
    assert said.startswith("chatrelay: ")
    assert "\n" not in said
    return said.removeprefix("chatrelay: ").removesuffix(END)


# The command line --------------------------------------------------------------

COMMAND_LINES = {
    "-n": "-n is an option of twistd: give it before chatrelay, as in twistd -n chatrelay",
    "-no": "-n is an option of twistd: give it before chatrelay, as in twistd -n chatrelay",
    "--pidfile x": "--pidfile is an option of twistd: give it before chatrelay, as in twistd --pidfile chatrelay",
    "--nodaemn": "--nodaemn is not an option; did you mean twistd's --nodaemon? Give it before chatrelay",
    "--pid-file=x": "--pid-file is not an option; did you mean twistd's --pidfile? Give it before chatrelay",
    "--log-file=x": "--log-file is not an option; did you mean twistd's --logfile? Give it before chatrelay",
    "--log-levl x": "--log-levl is not an option; did you mean --log-level?",
    "--orgin=https://x": "--orgin is not an option; did you mean --origin?",
    "--login_timeout 3": "--login_timeout is not an option; did you mean --login-timeout?",
    "-origin https://x": "-origin is not an option; did you mean --origin?",
    "-x": "-x is not an option",
    "-h": "-h is not an option; did you mean --help?",
    "--nonsense": "--nonsense is not an option",
    "--log- x": "--log- is not an option; did you mean --log-format or --log-level?",
    "--compression": "--compression needs a value: --compression yes|no",
    "--config": "--config needs a value: --config FILE",
    "http://x/": "'http://x/' is not an option: options begin with --; did you mean --auth-url http://x/?",
    "--login-timeout 5sec": "--login-timeout: '5sec' must be a number of seconds: give 5s",
    "--login-timeout 500ms": "--login-timeout: '500ms' must be a number of seconds: give 0.5s",
    "--recheck-interval 5m": "--recheck-interval: '5m' must be a number of seconds: give 300s",
    "--keep 1y": "--keep: '1y' must be a number of seconds, or a time with a unit such as 30min or 365d",
    "--keep 365D": "--keep: '365D' must be a number of seconds: give 31536000s",
    "--keep 3599s": "--keep: 3599 s is less than an hour: give 1h or more, or 0 to keep everything",
    "--keep 1h": "--keep: 3600 s is less than the 86400 s of again-time, in which messages that are sent again are looked "
    "for: give that much or more, or a shorter again-time",
    "--keep 365d --again-time 0": "--keep: messages that are sent again are looked for without a limit, because "
    "again-time is 0: give a limit of 31536000 s or less there",
    "--keep 30d --message-log none": "--keep: needs a message log that keeps messages, not none",
    "--recheck-spread 20%": "--recheck-spread: '20%' must be a number of per cent: give 20, without a unit",
    "--message-size 64k": "--message-size: '64k' must be a whole number of bytes: give 65536, without a unit",
    "--unread-size 1MiB": "--unread-size: '1MiB' must be a whole number of bytes: give 1048576, without a unit",
    "--message-burst 5s": "--message-burst: '5s' must be a whole number of messages",
    "--webserver-checks 1.5": "--webserver-checks: '1.5' must be a whole number of requests",
    "--login-timeout nan": "--login-timeout: nan must be a number",
    "--login-timeout inf": "--login-timeout: inf is more than 2147483647: give a number from 0 (which means no limit) "
    "to 2147483647",
    "--message-size -1": "--message-size: -1 is less than 0: give a number from 0 (which means no limit) to 2147483647",
    "--ping-interval -1": "--ping-interval: -1.0 is less than 0: give a number from 0 (which means never) to 2147483647",
    "--compression maybe": "--compression: 'maybe' must be yes or no",
    "--log-format xml": "--log-format: 'xml' must be text or json",
    "--recheck-spread 91": "--recheck-spread: 91 per cent is more than 90, and some re-checks would follow at once: give "
    "90 or less. For more frequent re-checks give a shorter recheck-interval",
    "--origin https://a.example/": "--origin: 'https://a.example/' is not an origin: give scheme, host and at most a "
    "port, without a path or a '/' at the end, such as https://example.com",
    "--origin https://*.example.com": "--origin: 'https://*.example.com' is not an origin: origins are exact, without "
    "wildcards, spaces or a path (not even '/')",
    "--auth-url ftp://x": "--auth-url: 'ftp://x' is not an http or https URL such as http://127.0.0.1/session.php",
    "--ops-token-file t": "--ops-token-file: needs ops-listen: the token is for the ops endpoint, so give its address, "
    "for instance --ops-listen tcp:8081",
    "nonsense": "'nonsense' is not an option: options begin with --",
    "--log-level warning": "--log-level: 'warning' must be one of debug, info, warn, error; did you mean warn?",
    "--config=": "--config: is empty: give the path of a TOML file",
    "--config nowhere/x": "--config: nowhere/x cannot be read: No such file or directory",
    "--breaker-wait 20": "--breaker-wait: 20 s is more than the 10 s of breaker-longest-wait, up to which it grows: "
    "give that much or less, or a longer breaker-longest-wait",
}


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_bad_command_line_is_refused_with_a_remedy(line: str) -> None:
    assert refused(*line.split(" ")) == COMMAND_LINES[line]


def test_twistd_option_after_chatrelay_is_refused_with_its_place() -> None:
    twistd = ServerOptions()
    for name in twistd.longOpt:
        option = f"--{name.removesuffix('=')}"
        if option in ("--help", "--version"):
            continue
        says = f"{option} is an option of twistd: give it before chatrelay, as in twistd {option} chatrelay"
        assert refused(*((f"{option}=x",) if name.endswith("=") else (option,))) == says
    for letter in twistd.shortOpt.replace(":", ""):
        assert refused(f"-{letter}").startswith(f"-{letter} is an option of twistd")
    assert {f"--{name}" for name in TWISTD_OPTIONS} <= {f"--{name.removesuffix('=')}" for name in twistd.longOpt}


# The file ------------------------------------------------------------------------

FILES = {
    'login_timeout = "10"': 'c.toml: login_timeout: "10" is a string: remove the quotes: login_timeout = 10',
    'message_size = "65536"': 'c.toml: message_size: "65536" is a string: remove the quotes: message_size = 65536',
    'login_timeout = "5 s"': 'c.toml: login_timeout: "5 s" must be a number of seconds: write login_timeout = 5, without '
    "quotes and unit",
    'message_size = "1 MiB"': 'c.toml: message_size: "1 MiB" must be a whole number of bytes: write message_size = '
    "1048576, without quotes and unit",
    'login_timeout = "soon"': 'c.toml: login_timeout: "soon" must be a number of seconds, without quotes, or a time '
    'with a unit such as "365d"',
    "login_timeout = 5s": 'c.toml, line 1: this is not valid TOML: write login_timeout = "5s", in quotes',
    "login_timeout = 5 sec": "c.toml, line 1: this is not valid TOML: write login_timeout = 5, without a unit",
    "login_timeout = [10]": "c.toml: login_timeout: [10] must be a number of seconds",
    "login_timeout = true": "c.toml: login_timeout: true must be a number of seconds",
    "login_timeout = 2020-01-01": "c.toml: login_timeout: 2020-01-01 must be a number of seconds",
    "login_timeout = -1": "c.toml: login_timeout: -1 is less than 0: give a number from 0 (which means no limit) to "
    "2147483647",
    "message_size = 65536.0": "c.toml: message_size: 65536.0 must be a whole number: write message_size = 65536",
    "message_size = 1.5": "c.toml: message_size: 1.5 must be a whole number",
    'compression = "true"': 'c.toml: compression: "true" is a string: remove the quotes: compression = true',
    'compression = "no"': 'c.toml: compression: "no" is a string: remove the quotes: compression = false',
    "compression = yes": "c.toml, line 1: this is not valid TOML: write compression = true",
    "compression = False": "c.toml, line 1: this is not valid TOML: write compression = false",
    "compression = 1": "c.toml: compression: 1 must be true or false, without quotes",
    "listen = 8080": 'c.toml: listen: 8080 must be a list of strings: write listen = ["tcp:8080:interface=127.0.0.1"]',
    "origin = [1]": 'c.toml: origin: [1] must be a list of strings: write origin = ["ORIGIN"]',
    "auth_format = 5": 'c.toml: auth_format: 5 must be a string: write auth_format = "..."',
    'auth_secret_file = ["a"]': 'c.toml: auth_secret_file: ["a"] must be a string: write auth_secret_file = "..."',
    "login_timeoute = 1": "c.toml: login_timeoute: is not an option; did you mean login_timeout?",
    "login-timeout = 1": "c.toml: login-timeout: is not an option; did you mean login_timeout?",
    "LOGIN_TIMEOUT = 1": "c.toml: LOGIN_TIMEOUT: is not an option; did you mean login_timeout?",
    "nonsense = 1": "c.toml: nonsense: is not an option",
    "pidfile = ''": "c.toml: pidfile: is an option of twistd: give it on the command line, as in twistd --pidfile "
    "chatrelay",
    "config = 'x'": "c.toml: config: a file cannot name another file: give --config, or CHATRELAY_CONFIG in the "
    "environment",
    "[chatrelay]\nlogin_timeout = 1": "c.toml: chatrelay: is a table, but options belong at the top level "
    "of the file: remove the line [chatrelay]",
    "[log]\nlevel = 'info'": "c.toml: log: is a table, but options belong at the top level of the file: write "
    "log_level = ...",
    "auth_format = form": 'c.toml, line 1: this is not valid TOML: put the value in quotes: auth_format = "form"',
    "\nlogin_timeout: 10": "c.toml, line 2: this is not valid TOML: write login_timeout = ..., with an equals sign",
    "login_timeout =": "c.toml, line 1: this is not valid TOML: login_timeout has no value",
    "login_timeout = 1\n\nlogin_timeout = 2": "c.toml, line 3: login_timeout is set a second time, first in line 1: "
    "remove one of them",
    "log_level = 'verbose'": "c.toml: log_level: 'verbose' must be one of debug, info, warn, error",
    "auth_format = '\"form\"'": "c.toml: auth_format: '\"form\"' must be form or json; remove the quotes around it",
    "message_log = 'x.db'": "c.toml: message_log: 'x.db' is not a message log: use sqlite:PATH, "
    "postgresql://USER@HOST/DATABASE, memory: or none (did you mean sqlite:x.db?)",
    "session_cookie = 'sid'": "c.toml: session_cookie: needs origin: browsers send the cookie from every page, so name "
    "the origins whose pages may log visitors in, for instance --origin https://example.com",
    "listen = []": "c.toml: listen: is empty: give at least one endpoint, for instance --listen tcp:8080",
}


@pytest.mark.parametrize("text", FILES)
def test_bad_file_is_refused_with_its_line_and_a_remedy(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(text)
    said = refused("--config", "c.toml")
    assert re.sub(r"not valid TOML \(.*\):", "not valid TOML:", said) == FILES[text]  # tomllib's words vary


def test_file_must_be_utf8_and_may_begin_with_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_bytes(b"# first\nauth_format = 'f\xf6rm'\n")
    assert refused("--config", "c.toml") == "c.toml, line 2: the text is not UTF-8: save the file as UTF-8"
    Path("c.toml").write_bytes(b"\xef\xbb\xbflogin_timeout = 7\r\n")
    options = Options()
    options.parseOptions([*URL, "--config", "c.toml"])
    assert options.chosen is not None
    assert options.chosen.login_timeout == 7


# The environment -------------------------------------------------------------------

VARIABLES = {
    "CHATRELAY_LOGIN_TIMEOUT=5 s": "CHATRELAY_LOGIN_TIMEOUT: '5 s' must be a number of seconds: give 5s",
    'CHATRELAY_LOGIN_TIMEOUT="10"': "CHATRELAY_LOGIN_TIMEOUT: '\"10\"' must be a number of seconds: remove the quotes",
    "CHATRELAY_LOGIN_TIMEOUT=-1": "CHATRELAY_LOGIN_TIMEOUT: -1.0 is less than 0: give a number from 0 (which means no "
    "limit) to 2147483647",
    "CHATRELAY_LOGIN_TIMEOUT=": "CHATRELAY_LOGIN_TIMEOUT: '' must be a number of seconds, or a time with a unit such as 30min "
    "or 365d",
    "CHATRELAY_COMPRESSION=maybe": "CHATRELAY_COMPRESSION: 'maybe' must be yes or no",
    "CHATRELAY_COMPRESSION='yes'": "CHATRELAY_COMPRESSION: \"'yes'\" must be yes or no: remove the quotes",
    'CHATRELAY_AUTH_FORMAT="json"': "CHATRELAY_AUTH_FORMAT: '\"json\"' must be form or json; remove the quotes "
    "around it",
    "CHATRELAY_LOG_LEVEL=INFO": "CHATRELAY_LOG_LEVEL: 'INFO' must be one of debug, info, warn, error; did you mean info?",
    "CHATRELAY_MESSAGE_LOG=mysql:x": "CHATRELAY_MESSAGE_LOG: 'mysql:x' is not a message log: use sqlite:PATH, "
    "postgresql://USER@HOST/DATABASE, memory: or none",
    "CHATRELAY_ORIGINS=https://a": "CHATRELAY_ORIGINS: is not an option; did you mean CHATRELAY_ORIGIN?",
    "CHATRELAY_LOGIN_TIMOUT=1": "CHATRELAY_LOGIN_TIMOUT: is not an option; did you mean CHATRELAY_LOGIN_TIMEOUT?",
    "CHATRELAY_CONFIG=nowhere/x": "CHATRELAY_CONFIG: nowhere/x cannot be read: No such file or directory",
    "CHATRELAY_LISTEN=": "CHATRELAY_LISTEN: is empty: give at least one endpoint, for instance --listen tcp:8080",
    "CHATRELAY_BREAKER_WAIT=20": "CHATRELAY_BREAKER_WAIT: 20 s is more than the 10 s of breaker-longest-wait, up to "
    "which it grows: give that much or less, or a longer breaker-longest-wait",
}


@pytest.mark.parametrize("setting", VARIABLES)
def test_bad_variable_is_refused_with_its_name(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*setting.split("=", 1))
    assert refused() == VARIABLES[setting]


# Endpoints -------------------------------------------------------------------------

ENDPOINTS = {
    "": "it is empty: give an endpoint such as tcp:8080:interface=127.0.0.1",
    "tcp": "the port is missing: give an endpoint such as tcp:8080:interface=127.0.0.1",
    "tcp:": "the port is missing: give an endpoint such as tcp:8080:interface=127.0.0.1",
    "tcp:port=": "the port is missing: give an endpoint such as tcp:8080:interface=127.0.0.1",
    "tcp:localhost:8080": "the port must come first: tcp:8080:interface=127.0.0.1",
    "tcp:10.0.0.1:8080": "the port must come first: tcp:8080:interface=10.0.0.1",
    "tcp6:localhost:8080": r"the port must come first: tcp6:8080:interface=\:\:1",
    "ssl:localhost:443": "the port must come first: ssl:443:privateKey=/etc/ssl/private/key.pem:certKey="
    "/etc/ssl/certs/cert.pem",
    "tcp:99999": "99999 is not a port: use 1 to 65535, or 0 for any free port",
    "tcp6:99999": "99999 is not a port: use 1 to 65535, or 0 for any free port",
    "tcp:-1": "-1 is not a port: use 1 to 65535, or 0 for any free port",
    "ssl:99999:privateKey=k": "99999 is not a port: use 1 to 65535, or 0 for any free port",
    "tcp:8080,tcp:8081": "it is more than one endpoint: give the option once for each",
    "tls": "the folder is missing: give an endpoint such as tls:/etc/chatrelay/certificates:443",
    "tls:443": "443 cannot be read: No such file or directory: give a folder of PEM files, such as "
    "tls:/etc/chatrelay/certificates:443",
    "tls:.:99999": "99999 is not a port: use 1 to 65535, or 0 for any free port",
    "tls:.": "no file in the folder . has a name that ends with .pem: put a PEM file there",
    "tcp:http": "the port 'http' is not a number: give an endpoint such as tcp:8080:interface=127.0.0.1",
    "tcp:8080:interfce=::1": "interfce= is not an argument of tcp endpoints: did you mean interface=?",
    "tcp:8080:nonsense=1": "nonsense= is not an argument of tcp endpoints: use port, interface, backlog",
    "tcp:8080:interface=::1": "write a backslash before each colon of an IPv6 address, as in "
    r"tcp:8080:interface=\:\:1",
    "tcp6:8080:interface=fe80::1": "write a backslash before each colon of an IPv6 address, as in "
    r"tcp6:8080:interface=\:\:1",
    "tcp:8080:port=8081": "port is given twice, '8080' and '8081': give it once",
    "tcp:8080:backlog=many": "the backlog 'many' is not a number: leave it out",
    "ssl": "the port is missing: give an endpoint such as ssl:443:privateKey=/etc/ssl/private/key.pem:certKey="
    "/etc/ssl/certs/cert.pem",
    "ssl:8443": "the private key is missing: give the files of the key and of the certificate, such as "
    "ssl:8443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem",
    "ssl:8443:privateKey=": "the private key is missing: give the files of the key and of the certificate, such as "
    "ssl:8443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem",
    "ssl:8443:certKey=c": "the private key is missing: give the files of the key and of the certificate, such as "
    "ssl:8443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem",
    "ssl:8443:privateKey=nowhere": "privateKey=nowhere cannot be read: No such file or directory",
    "ssl:8443:privateKey=text": "privateKey=text holds no private key in PEM form",
    "ssl:8443:privateKey=locked": "the key in locked is encrypted, and the relay cannot ask for the passphrase: "
    "decrypt it with openssl pkey -in FILE -out FILE",
    "unix": "the path is missing: give an endpoint such as unix:/run/chatrelay/chatrelay.sock",
    "unix:": "the path is missing: give an endpoint such as unix:/run/chatrelay/chatrelay.sock",
    f"unix:/{'x' * 120}": "the path of the UNIX socket has 121 bytes, and the limit is 107: choose a shorter one",
    "unix:s:mode=rw": "the mode 'rw' is not an octal number such as 660",
    "unix:s:mode=999": "the mode '999' is not an octal number such as 660",
    "systemd": "the domain '' is not INET, INET6 or UNIX: give an endpoint such as systemd:domain=INET:index=0",
    "systemd:domain=FOO:index=0": "the domain 'FOO' is not INET, INET6 or UNIX: give an endpoint such as "
    "systemd:domain=INET:index=0",
    "systemd:domain=INET": "it needs either index= or name=, which choose one of systemd's sockets",
    "systemd:domain=INET:index=x": "the index 'x' is not a number: use 0 for the first socket",
}


KINDS = {
    "8080": "did you mean tcp:8080:interface=127.0.0.1?",
    "localhost:8080": "did you mean tcp:8080:interface=127.0.0.1?",
    "10.0.0.1:8080": "did you mean tcp:8080:interface=10.0.0.1?",
    ":8080": "did you mean tcp:8080?",
    "0.0.0.0:8080": "did you mean tcp:8080?",
    "http://localhost:8080/": "did you mean tcp:8080:interface=127.0.0.1?",
    "http:8080": "did you mean tcp:8080?",
    "tcp4:8080": "did you mean tcp:8080?",
    "tpc:8080": "did you mean tcp:8080?",
    "unx:/run/s": "did you mean unix:/run/s?",
    "/run/s": "did you mean unix:/run/s?",
    "wss:443": "did you mean ssl:443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem?",
    "fd:3": "did you mean systemd:domain=INET:index=0?",
    "haproxi:tcp:1": "did you mean haproxy:tcp:1?",
    "nonsense": "'nonsense' is not a kind of endpoint: use one of tcp, tcp6, ssl, tls, unix, systemd",
}
"""Endpoints of kinds that Twisted does not know."""


@pytest.mark.parametrize("wrapper", ["", "haproxy:"])
@pytest.mark.parametrize("endpoint", KINDS)
def test_unknown_kind_of_endpoint_gets_a_suggestion(endpoint: str, wrapper: str) -> None:
    check(wrapper + endpoint)  # only Twisted knows the kinds of its plugins
    with pytest.raises(ValueError, match="Unknown endpoint type") as refusal:
        serverFromString(object(), wrapper + endpoint)
    said = endpoints.refusal_text(wrapper + endpoint, refusal.value)
    assert said == KINDS[endpoint].replace("mean ", f"mean {wrapper}")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with files that are not keys."""
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("Dear diary")
    Path("locked").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_bad_endpoint_is_refused_with_a_remedy(endpoint: str) -> None:
    with pytest.raises(BadEndpointError) as refusal:
        check(endpoint)
    assert str(refusal.value) == ENDPOINTS[endpoint]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("endpoint", [endpoint for endpoint in ENDPOINTS if endpoint])
def test_bad_endpoint_after_haproxy_gets_a_remedy_after_haproxy(endpoint: str) -> None:
    with pytest.raises(BadEndpointError) as refusal:
        check(f"haproxy:{endpoint}")
    said = str(refusal.value)
    assert re.sub("haproxy:(?=tcp|ssl|tls|unix|systemd)", "", said) == ENDPOINTS[endpoint]
    assert not re.search("(?<!haproxy:)(tcp6?|ssl|tls|unix|systemd):", said)


@pytest.mark.parametrize("endpoint", ["haproxy", "haproxy:"])
def test_haproxy_without_an_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(BadEndpointError, match="haproxy: needs an endpoint after it, such as haproxy:tcp:8080"):
        check(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("tcp:8080", "tcp:0", "tcp: 8080", "tcp:8080:127.0.0.1", "tcp:8080:interface=127.0.0.1"),
        *(r"tcp:8080:interface=\:\:1", "tcp:port=8080:backlog=5", "tcp:interface=127.0.0.1:port=8080"),
        *(r"tcp6:8080:interface=\:\:1", "tcp6:8080:5", "unix:/run/s", "unix:address=s:mode=660:lockfile=0"),
        *("unix:s:660", "systemd:domain=UNIX:name=chat", "systemd:INET:index=0", "haproxy:tcp:8080", "onion:80"),
        *("onion:80:controlPort=9051", "tls:certificates:8443:interface=127.0.0.1", "stdio:"),
    ],
)
def test_good_endpoint_is_not_refused(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("certificates").mkdir()
    Path("certificates/example.com.pem").touch()
    check(endpoint)


def test_missing_private_key_is_not_refused_beside_server_pem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.pem").write_text("what it holds is for Twisted to say")
    check("ssl:8443")


@attrs.frozen
class Refuses:
    """An endpoint that can't be opened."""

    error: Exception

    def listen(self, factory: Factory) -> object:
        """Fail."""
        return fail(self.error)


def open_error(description: str, error: Exception) -> str:
    """Return the error message for an endpoint whose opening fails."""
    listening = NamedEndpoint(Refuses(error), "ops-listen", description).listen(Factory())  # type: ignore[arg-type]
    failures: list[BaseException] = []
    listening.addErrback(lambda failure: failures.append(failure.value))
    (said,) = failures
    assert isinstance(said, CannotOpenError)
    assert isinstance(said, CannotListenError)
    assert (said.option, str(said)) == ("ops-listen", f"ops-listen: {said.problem}")
    return said.problem


def bind_error(number: int) -> CannotListenError:
    """Return the error that Twisted raises for an error of bind(2)."""
    return CannotListenError("127.0.0.1", 80, OSError(number, os.strerror(number)))


def test_port_that_cannot_be_opened_is_reported_with_a_remedy() -> None:
    in_use, denied, not_there = 98, 13, 99
    assert open_error("tcp:8080", bind_error(in_use)) == (
        "'tcp:8080' cannot be opened: port 8080 is in use (Address already in use): stop the program that uses it, or "
        "choose another port"
    )
    assert "'haproxy:tcp:80' cannot be opened: a port below 1024 needs a privilege (Permission denied): " in open_error(
        "haproxy:tcp:80", bind_error(denied)
    )
    assert "AmbientCapabilities=" in open_error("tcp:80", bind_error(denied))
    assert open_error("tcp:8080", bind_error(denied)) == "'tcp:8080' cannot be opened: Permission denied"
    assert open_error("tcp:1:interface=10.9.9.9", bind_error(not_there)) == (
        "'tcp:1:interface=10.9.9.9' cannot be opened: this machine has no address 10.9.9.9: choose one that it has"
    )
    assert "no address nosuch" in open_error("tcp:1:interface=nosuch", socket.gaierror(-2, "Name or service not known"))
    assert open_error("onion:80", RuntimeErrorOfAPlugin(1, "no Tor")) == "'onion:80' cannot be opened: no Tor"


class RuntimeErrorOfAPlugin(OSError):
    """An error as a plugin of Twisted may raise it."""


def test_unknown_error_of_an_endpoint_is_not_changed() -> None:
    listening = NamedEndpoint(Refuses(KeyError("x")), "listen", "tcp:1").listen(Factory())  # type: ignore[arg-type]
    failures: list[BaseException] = []
    listening.addErrback(lambda failure: failures.append(failure.value))
    assert [type(failure) for failure in failures] == [KeyError]


def test_unix_socket_that_cannot_be_opened_is_reported_with_its_folder(tmp_path: Path) -> None:
    missing = FileNotFoundError(2, "No such file or directory", "123", None, "s.lock")
    assert f"there is no folder {tmp_path}/nowhere: make it, or choose another path" in open_error(
        f"unix:{tmp_path}/nowhere/s", missing
    )
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file is not a folder" in open_error(f"unix:{tmp_path}/file/s", NotADirectoryError(20, "x"))


def test_missing_systemd_socket_is_reported_with_those_that_were_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = IndexError("list index out of range")
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    said = endpoints.refusal_text("systemd:domain=INET:index=0", error)
    assert said.startswith("systemd passed no socket: start the socket unit")
    for name, value in (("LISTEN_PID", str(os.getpid())), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b")):
        monkeypatch.setenv(name, value)
    said = endpoints.refusal_text("systemd:domain=INET:name=c", KeyError("c"))
    assert said == "systemd did not pass this socket: it passed 2, named a, b"


def test_socket_of_another_user_is_reported_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    said = open_error(f"unix:{path}", CannotListenError(None, str(path), "Permission denied"))
    assert f" may not read {path}, which belongs to " in said
    assert said.endswith(": choose another path, or remove it if nobody listens there")


# Message logs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("log.db", "sqlite:log.db"),
        ("/var/lib/log.db", "sqlite:/var/lib/log.db"),
        ("sqlite", "sqlite:PATH"),
        ("sqllite:x", "sqlite:x"),
        ("SQLite:x", "sqlite:x"),
        ("sqlite3:x", "sqlite:x"),
        ("file:x", "sqlite:x"),
        ("memory", "memory:"),
        (":memory:", None),
        ("None", "none"),
        ("none:", "none"),
        ("mysql://x", None),
        ("postgresql:x", "postgresql://USER@HOST/DATABASE"),
        ("postgre://x", "postgresql://USER@HOST/DATABASE"),
        ("sqlite:", None),
    ],
)
def test_bad_message_log_url_gets_a_suggestion(url: str, meant: str | None) -> None:
    hint = "" if meant is None else f" (did you mean {meant}?)"
    kinds = "sqlite:PATH, postgresql://USER@HOST/DATABASE, memory: or none"
    says = f"--message-log: {url!r} is not a message log: use {kinds}{hint}"
    assert refused("--message-log", url) == says
