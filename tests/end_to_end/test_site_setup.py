"""Sites of real frameworks that are configured so that nobody can log in, and what the relay logs about them.

Django, Flask, PHP and nginx are the real ones. The tests check the line that a developer finds in the relay's log.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import InvalidStatus

from bench.ports import free_port
from tests.support import PATIENCE
from tests.support.client import Client
from tests.support.deploy import NGINX, needs_nginx
from tests.support.framework_sites import SERVED
from tests.support.php_site import PHP, PhpSite
from tests.support.programs import RelayProcess, Site, StartRelay, connected
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE

NAME = "www.example.com"

DJANGO = """
import json, sys
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

given = json.loads(sys.argv[1])
exempt, strict, slash = given.pop("exempt", False), given.pop("strict", False), given.pop("slash", "")
settings.configure(SECRET_KEY="x" * 50, ROOT_URLCONF=__name__, **given)

def session(request):
    user = {"alice-session": 1}.get(request.POST["SESSID"] if strict else request.POST.get("SESSID"))
    return JsonResponse({"loggedin": True, "uID": user} if user else {"loggedin": False})

urlpatterns = [path("session" + slash, csrf_exempt(session) if exempt else session)]
application = get_wsgi_application()
"""

FLASK = """
from flask import Flask, request
from flask_wtf.csrf import CSRFProtect

application = Flask(__name__)
application.secret_key = "x" * 50
CSRFProtect(application)

@application.post("/session")
def session():
    return {"loggedin": request.form.get("SESSID") == "alice-session", "uID": 1}
"""

CSRF = "django.middleware.csrf.CsrfViewMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"

StartSite = Callable[..., int]


@pytest.fixture
def start_site() -> Iterator[StartSite]:
    """Start programs that serve a site; return the port of one."""
    with ExitStack() as running:

        def start(program: str, **settings: object) -> int:
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program + SERVED, json.dumps(settings)], stdout=subprocess.PIPE, text=True
                )
            )
            running.callback(process.kill)
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (\d+)\n", process.stdout.readline())
            assert found, "the site has not started: see its traceback"
            return int(found[1])

        yield start


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[StartRelay]:
    """Start relays that ask a site."""
    with ExitStack() as running:

        def start(url: str, *options: str, **environment: str) -> RelayProcess:
            relay = RelayProcess(
                tmp_path,
                "--auth-url",
                url,
                "--message-log",
                "memory:",
                "--logins-per-minute",
                "0",
                *options,
                **environment,
            )
            return running.enter_context(relay)

        yield start


def log_in(relay: RelayProcess, sessid: str | None = "alice-session", **options: object) -> object:
    """Return the outcome of a login."""
    with relay.client(**options) as visitor:
        return visitor.log_in(sessid)


def startup_warning(relay: RelayProcess) -> str:
    """Return the warning of the startup check."""
    return relay.said("the startup check of the session page")


def found_all_right(relay: RelayProcess) -> bool:
    """Return whether the startup check and a login succeed without a warning."""
    fine = relay.said("made up, as it should")
    assert log_in(relay) == ADMITTED
    relay.stop()
    return not any("session page" in line for line in relay.output if line != fine)


# A page that denies everybody --------------------------------------------------------------


def test_csrf_protection_of_a_django_page_is_logged_at_the_start(start_site: StartSite, asking: StartRelay) -> None:
    port = start_site(DJANGO, MIDDLEWARE=[CSRF])
    relay = asking(f"http://127.0.0.1:{port}/session")
    line = startup_warning(relay)
    assert "got status 403" in line
    assert "CSRF verification failed. Request aborted." in line
    assert "probably the site's CSRF protection" in line
    assert "csrf_exempt" in line
    assert "<" not in line
    assert "chatrelay-at-start" not in line
    assert log_in(relay) == DENIED
    exempt = asking(f"http://127.0.0.1:{start_site(DJANGO, MIDDLEWARE=[CSRF], exempt=True)}/session")
    assert found_all_right(exempt)


def test_csrf_protection_of_a_flask_page_is_logged_at_the_start(start_site: StartSite, asking: StartRelay) -> None:
    relay = asking(f"http://127.0.0.1:{start_site(FLASK)}/session")
    line = startup_warning(relay)
    assert "it answered with status 400: '400 Bad Request: Bad Request The CSRF token is missing.'" in line
    assert "probably the site's CSRF protection" in line
    assert "csrf.exempt" in line


def test_page_that_denies_everybody_is_logged_after_three_logins_and_ten_sessions(
    site: Site, asking: StartRelay
) -> None:
    site.answer = lambda request: request.reply(403, b"<h1>Forbidden</h1>")
    relay = asking(site.url)
    for number in range(2):
        assert log_in(relay, f"session-{number}") == DENIED
    assert log_in(relay, "session-0") == DENIED  # which is remembered for a moment, and not asked about
    assert not [line for line in relay.output if "denied all of the first" in line]
    assert log_in(relay, "session-2") == DENIED
    line = relay.said("of the first 3 logins")
    assert "with status 403" in line
    assert "CSRF" in line
    assert "session-" not in line
    for number in range(3, 10):
        log_in(relay, f"session-{number}")
    assert "(of 10 sessions)" in relay.said("of the first 10 logins")
    for number in range(20):
        log_in(relay, f"more-{number}")
    relay.stop()
    assert len([line for line in relay.output if "denied all of the first" in line]) == 2


def test_one_session_denied_three_times_is_logged(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url, "--denial-memory", "0")
    for _ in range(20):
        assert log_in(relay, "s%3Asecretid.signature") == DENIED
    line = relay.said("denied all of the first")
    assert "of the first 3 logins" in line and "of 1 session)" in line
    assert "express-session" in line and "decodeURIComponent" in line
    relay.stop()
    assert len([line for line in relay.output if "denied all of the first" in line]) == 1
    assert not [line for line in relay.output if "secretid" in line or "signature)" in line]


@pytest.mark.skipif(PHP is None, reason="php is missing (on Debian: apt install php-cli)")
def test_json_to_a_php_form_page_is_logged_after_three_logins(tmp_path: Path, asking: StartRelay) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "session.php").write_text(
        "<?php header('Content-Type: application/json');\n"
        "$in = ($_POST['SESSID'] ?? '') === 'alice-session';\n"
        "echo json_encode($in ? ['loggedin' => true, 'uID' => 1] : ['loggedin' => false]);\n"
    )
    with PhpSite(tmp_path, pages) as site:
        relay = asking(f"{site.origin}/session.php", "--auth-format", "json")
        for number in range(3):
            assert log_in(relay, f"session-{number}") == DENIED
        line = relay.said("denied all of the first")
        assert 'by "loggedin": false' in line
        assert "SESSID from a JSON object (else: --auth-format form)" in line
        for option in ("session-cookie", "auth-url"):
            assert option in line
        assert found_all_right(asking(f"{site.origin}/session.php"))


def test_successful_login_prevents_the_warning(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url)
    assert log_in(relay) == ADMITTED
    for number in range(12):
        assert log_in(relay, f"session-{number}") == DENIED
    relay.stop()
    assert not [line for line in relay.output if "denied all of the first" in line]


# A cookie that does not come ----------------------------------------------------------------


def visit(relay: RelayProcess, *cookies: str) -> object:
    """Connect as a page with the cookies of a browser; return the outcome of its login by the cookie."""
    headers = {"Cookie": "; ".join(cookies)} if cookies else {}
    return log_in(relay, None, origin="https://www.example.com", additional_headers=headers)


def test_wrong_cookie_name_is_logged_with_the_names_that_came(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url, "--session-cookie", "PHPSESSID", "--origin", "https://www.example.com")
    for _ in range(2):
        assert visit(relay, "sessionid=alice-session", "csrftoken=s3cret", "lonely-s3cret") == DENIED
    assert not [line for line in relay.output if "without the session cookie" in line]
    assert visit(relay, "sessionid=alice-session", "th\u00e9me=dark") == DENIED
    line = relay.said("without the session cookie")
    assert "3 logins in a row came without the session cookie PHPSESSID" in line
    assert "sessionid, csrftoken, th" in line
    assert "session-cookie" in line
    for value in ("alice", "s3cret", "ark"):
        assert value not in line
    for _ in range(15):
        visit(relay, "sessionid=alice-session")
    relay.stop()
    assert len([line for line in relay.output if "without the session cookie" in line]) == 2  # and at the tenth
    assert site.asked == []


def test_host_that_gets_no_cookie_is_logged_with_both_names(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url, "--session-cookie", "sessionid", "--origin", "https://www.example.com")
    for _ in range(3):
        assert visit(relay) == DENIED
    line = relay.said("without the session cookie")
    assert "No cookie came at all" in line
    assert f"do not send the cookies of https://www.example.com to 127.0.0.1:{relay.port}" in line
    assert "Domain" in line


@pytest.mark.parametrize("is_by_cookie", [True, False])
def test_missing_cookie_after_a_success_is_logged_at_the_tenth_time(
    site: Site, asking: StartRelay, is_by_cookie: bool
) -> None:
    relay = asking(site.url, "--session-cookie", "sessionid", "--origin", "https://www.example.com")
    if is_by_cookie:
        assert visit(relay, "sessionid=alice-session") == ADMITTED
    else:
        assert log_in(relay) == ADMITTED
    for _ in range(6):
        assert visit(relay, "theme=dark") == DENIED
    assert visit(relay, "sessionid=alice-session") == ADMITTED
    for _ in range(6):
        assert visit(relay, "theme=dark") == DENIED
    relay.stop()
    assert not [line for line in relay.output if "without the session cookie" in line]


def test_page_under_another_name_of_the_machine_is_logged_with_both_remedies(site: Site, asking: StartRelay) -> None:
    def come(relay: RelayProcess, origin: str) -> object:
        with Client(f"ws://localhost:{relay.port}/", origin=origin) as visitor:
            return visitor.log_in(None)

    page = "http://127.0.0.1:3000"
    ways = "open the page at http://localhost:3000, or connect to ws://127.0.0.1:"
    relay = asking(site.url, "--session-cookie", "sessionid", "--origin", "http://localhost:3000")
    with pytest.raises(InvalidStatus):
        come(relay, page)
    assert f"{ways}{relay.port}" in relay.said("was refused")

    relay = asking(site.url, "--session-cookie", "sessionid", "--origin", page)
    for _ in range(3):
        assert come(relay, page) == DENIED
    assert f"{ways}{relay.port}" in relay.said("without the session cookie")


def test_unreachable_site_is_logged_in_whole_sentences(asking: StartRelay) -> None:
    line = startup_warning(asking(f"http://127.0.0.1:{free_port()}/session"))
    assert "Connection refused. Check that --auth-url is right" in line


def test_login_by_cookie_without_the_option_is_logged_once(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url, "--origin", "https://www.example.com")
    for _ in range(2):
        answer = visit(relay, "sessionid=alice-session")
        assert isinstance(answer, dict) and answer["reason"] == "invalid-auth-request"
    line = relay.said("can't be logged in")
    assert "--session-cookie" in line
    relay.stop()
    assert len([line for line in relay.output if "can't be logged in" in line]) == 1


def test_proxy_that_strips_the_origin_is_logged_once(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url, "--session-cookie", "sessionid", "--origin", "https://www.example.com")
    for _ in range(2):
        answer = log_in(relay, None, additional_headers={"Cookie": "sessionid=alice-session"})
        assert isinstance(answer, dict) and answer["reason"] == "invalid-auth-request"
    line = relay.said("can't be logged in")
    assert "the proxy" in line and "Origin" in line
    assert "alice" not in line
    relay.stop()
    assert len([line for line in relay.output if "can't be logged in" in line]) == 1


# A site that wants to be asked by its name, and over https ------------------------------------


def test_allowed_hosts_of_django_need_auth_host(start_site: StartSite, asking: StartRelay) -> None:
    port = start_site(DJANGO, MIDDLEWARE=[COMMON], ALLOWED_HOSTS=[NAME])
    url = f"http://127.0.0.1:{port}/session"
    line = startup_warning(asking(url))
    assert "it answered with status 400" in line
    assert "auth-host" in line and "ALLOWED_HOSTS" in line
    assert found_all_right(asking(url, "--auth-host", NAME))


@pytest.mark.parametrize(
    ("settings", "options", "remedy"),
    [
        ({"ALLOWED_HOSTS": [NAME]}, [], "--auth-host"),
        ({"strict": True}, ["--auth-format", "json"], "does not find SESSID: try --auth-format form"),
        ({"slash": "/"}, [], "Add a slash to the end of --auth-url"),
        ({"MIDDLEWARE": [CSRF], "exempt": False}, [], "the site's CSRF protection"),
    ],
)
def test_debug_page_of_django_is_quoted_from_its_beginning(
    start_site: StartSite, asking: StartRelay, settings: dict[str, object], options: list[str], remedy: str
) -> None:
    # Below, they have all settings of the site, CSRF_COOKIE_NAME and others among them.
    port = start_site(DJANGO, **{"DEBUG": True, "MIDDLEWARE": [COMMON], "exempt": True, **settings})
    line = startup_warning(asking(f"http://127.0.0.1:{port}/session", *options))
    assert remedy in line
    assert ("CSRF protection" in line) is ("CSRF protection" in remedy)


def test_https_redirect_of_django_needs_auth_header(start_site: StartSite, asking: StartRelay) -> None:
    port = start_site(
        DJANGO,
        MIDDLEWARE=[SECURITY, COMMON],
        ALLOWED_HOSTS=[NAME],
        SECURE_SSL_REDIRECT=True,
        SECURE_PROXY_SSL_HEADER=["HTTP_X_FORWARDED_PROTO", "https"],
    )
    url = f"http://127.0.0.1:{port}/session"
    relay = asking(url, "--auth-host", NAME)
    line = startup_warning(relay)
    assert f"it answered with status 301, a redirect to 'https://{NAME}/session'" in line
    assert "--auth-header 'X-Forwarded-Proto: https'" in line
    assert log_in(relay) == UNAVAILABLE
    assert found_all_right(asking(url, "--auth-host", NAME, "--auth-header", "X-Forwarded-Proto: https"))
    environment = {"CHATRELAY_AUTH_HOST": NAME, "CHATRELAY_AUTH_HEADER": "X-Forwarded-Proto: https"}
    assert found_all_right(asking(url, **environment))


@needs_nginx
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_with_several_sites_needs_auth_host(site: Site, tmp_path: Path, asking: StartRelay, scheme: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in (NAME, "other.example.com"):
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    port = free_port()
    ending = " ssl" if scheme == "https" else ""

    def server(name: str, default: str, location: str) -> str:
        tls = f"ssl_certificate {tmp_path}/{name}.pem; ssl_certificate_key {tmp_path}/{name}.pem;" if ending else ""
        return (
            f"    server {{ listen 127.0.0.1:{port}{ending}{default}; server_name {name}; {tls}\n"
            f"        location / {{ {location} }} }}\n"
        )

    temporary = "".join(
        f"    {kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\n"
        f"events {{ worker_connections 64; }}\nhttp {{\n{temporary}    access_log off;\n"
        + server("other.example.com", " default_server", "return 404;")
        + server(NAME, "", f"proxy_pass http://127.0.0.1:{site.port};")
        + "}\n"
    )
    assert NGINX is not None
    with subprocess.Popen([NGINX, "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]) as nginx:
        try:
            wait_for(port, nginx)
            url = f"{scheme}://127.0.0.1:{port}/session"
            options = ("--auth-ca-file", str(tmp_path / "ca.pem")) if scheme == "https" else ()
            line = startup_warning(asking(url, *options))
            assert (
                "it answered with status 404" if scheme == "http" else "its certificate is not for 127.0.0.1"
            ) in line
            assert "auth-host" in line
            assert found_all_right(asking(url, *options, "--auth-host", NAME))
        finally:
            nginx.terminate()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a program listens."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with connected(port):
                return
        except ConnectionRefusedError:
            assert process.poll() is None and time.monotonic() < until, "it has not started"
            time.sleep(0.02)
