"""The URLs of message logs in PostgreSQL: what is accepted, what is said, and that a password is never shown."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from unittest.mock import patch

import pytest
from psycopg.conninfo import conninfo_to_dict
from twisted.internet import reactor

import chatrelay.messagelog
from chatrelay.messagelog import BadMessageLogURL, check_url, message_log, message_reader, without_password
from chatrelay.messagelog.postgres.address import BadAddress, parse

PASSWORD = "s3cr%21t"
"""A password as it is written in a URL. It is ``s3cr!t``."""

WITH_PASSWORD = [
    f"postgresql://user:{PASSWORD}@host/database",
    f"postgresql://user:{PASSWORD}@host1:5432,host2:5433/database?sslmode=verify-full",
    f"postgresql://user@host/database?password={PASSWORD}&sslmode=require",
    f"postgresql://user@host/database?sslmode=require&sslpassword={PASSWORD}",
    f"postgres://:{PASSWORD}@host/database",
    f"postgresql://user:{PASSWORD}?x@host/database",
]

UNUSABLE = [
    f"postgresql://user:{PASSWORD}/x@host/database",
    f"postgresql://user:{PASSWORD}@x@host/database",
    f"postgresql://user:{PASSWORD}:/@x@host/database",
    f"postgresql://user:{PASSWORD}#x y@host/database",
    f"postgresql://user:{PASSWORD}@host/database?no-such-option=1",
    f"postgresql://user:{PASSWORD}@host/database?sslmode",
    f"postgresql://user:{PASSWORD}@[::1/database",
    f"postgresql://user:{PASSWORD}%@host/database",
]


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_password_reaches_libpq_and_is_in_no_text(url: str) -> None:
    address = parse(url)
    parameters = conninfo_to_dict(address.conninfo)
    assert "s3cr!t" in f"{parameters.get('password')} {parameters.get('sslpassword')}"
    for text in (address.name, repr(address), without_password(url)):
        assert "s3cr" not in text


def test_password_in_a_text_of_the_server_is_hidden() -> None:
    address = parse(WITH_PASSWORD[0])
    assert address.hide(f"bad: s3cr!t and {PASSWORD}") == "bad: *** and ***"
    assert parse("postgresql://user@host/database").hide("unchanged") == "unchanged"


@pytest.mark.parametrize("url", UNUSABLE)
def test_unusable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadMessageLogURL, match="special characters as %XX") as refused:
        check_url(url)
    assert "s3cr" not in str(refused.value)
    assert "s3cr" not in without_password(url)


def test_unusable_url_without_a_password_gets_the_reason_of_libpq() -> None:
    with pytest.raises(BadAddress, match=r'invalid URI query parameter: "no-such-option"'):
        parse("postgresql://host/database?no-such-option=1")


def test_misspelled_url_is_refused_without_its_password() -> None:
    for url in ("postgresq://user:s3cr@host/database", "pg://user:s3cr/x@host/database", "mysql://user:s3cr@host/x"):
        with pytest.raises(BadMessageLogURL) as refused:
            check_url(url)
        assert "s3cr" not in str(refused.value)


def test_urls_without_a_password_are_named_in_full() -> None:
    for url in ("sqlite:x@y:z", "memory:", "none", "postgresql://user@host:5432/database?sslmode=require"):
        assert without_password(url) == url


def test_name_has_user_host_and_database() -> None:
    assert parse("postgresql://user@host:5433/chat?sslmode=require").name == "postgresql://user@host:5433/chat"
    assert parse("postgres://host/chat").name == "postgresql://host/chat"
    assert parse("postgresql:///chat?host=/run/postgresql&user=relay").name == "postgresql://relay@/run/postgresql/chat"


def test_settings_of_the_url_replace_the_defaults() -> None:
    parameters = conninfo_to_dict(parse("postgresql://host/chat?keepalives_idle=7&application_name=mine").conninfo)
    assert (parameters["keepalives_idle"], parameters["application_name"]) == ("7", "mine")
    assert parameters["tcp_user_timeout"] == "15000"


def test_missing_psycopg_is_named_with_the_remedy() -> None:
    def without_psycopg(name: str) -> ModuleSpec | None:
        return None

    for use in (check_url, message_reader, lambda url: message_log(url, reactor)):  # type: ignore[arg-type]
        with (
            patch.object(chatrelay.messagelog, "find_spec", without_psycopg),
            pytest.raises(BadMessageLogURL, match=r"needs psycopg: pip install 'chatrelay\[postgres\]'"),
        ):
            use("postgresql://host/chat")


def test_psycopg_without_libpq_is_named_with_the_remedy() -> None:
    with (
        patch.dict(sys.modules, {"chatrelay.messagelog.postgres.address": None}),
        pytest.raises(BadMessageLogURL, match=r"psycopg cannot be used here \(.*pip install 'chatrelay\[postgres\]'"),
    ):
        check_url("postgresql://host/chat")
