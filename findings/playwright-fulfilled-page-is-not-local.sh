#!/bin/bash
# Playwright with Chromium: a page of 127.0.0.1 that a test fulfils cannot open a WebSocket to 127.0.0.1
#
# Guess:     A page that page.route() fulfils under http://127.0.0.1:PORT/ may do what the same page may do when the server sends it.
# Behaviour: Chromium does not know from which address the fulfilled page came, and its check for local network access denies
#            it 127.0.0.1. A WebSocket to the page's own server fails (1006, without a handshake at the server). The same page,
#            sent by the server, connects. The page's URL, origin and cookies are the same.
# Matters:   In a test that makes up a page, the server seems to refuse the client. Serve the page instead.
# Seen:      sent by the server: open, handshakes 1
#            fulfilled by the test: closed 1006, handshakes 0
# Versions:  Chromium 156.0.8078.108 (Debian 12), playwright 1.65.2, Python 3.11
# Needs:     Chromium (Debian: chromium)
# Checked:   2026-11-28
set -euo pipefail
if ! command -v chromium >/dev/null; then
    echo "Chromium is missing." >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check playwright==1.65.2

timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import base64
import hashlib
import os
import shutil
import sys

from playwright.async_api import async_playwright

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONNECT = """() => new Promise(done => {
    const socket = new WebSocket("ws://" + location.host + "/socket");
    socket.onopen = () => done("open");
    socket.onclose = ({ code }) => done("closed " + code);
})"""
PAGE = "<!DOCTYPE html>hello"
handshakes = []


async def accept(reader, writer):
    try:
        await answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(reader, writer):
    request = await reader.readuntil(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:-2])
    if b"Sec-WebSocket-Key" in headers:
        handshakes.append(request)
        key = base64.b64encode(hashlib.sha1(headers[b"Sec-WebSocket-Key"] + GUID).digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n")
        await reader.read(100)
    else:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
        writer.write(f"Content-Length: {len(PAGE)}\r\n\r\n{PAGE}".encode())
        await writer.drain()


async def main():
    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    seen = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        print("Chromium", browser.version)
        for name in ("sent by the server", "fulfilled by the test"):
            page = await (await browser.new_context()).new_page()
            if name == "fulfilled by the test":
                await page.route(url, lambda route: route.fulfill(body=PAGE, content_type="text/html"))
            await page.goto(url)
            before = len(handshakes)
            seen.append((await page.evaluate(CONNECT), len(handshakes) - before))
            print(f"{name}: {seen[-1][0]}, handshakes {seen[-1][1]}")
        await browser.close()
    listening.close()
    return seen == [("open", 1), ("closed 1006", 0)]


if not asyncio.run(asyncio.wait_for(main(), 100)):
    sys.exit("The behaviour has changed.")
PYTHON
