#!/bin/bash
# Chromium: a WebSocket handshake that waits holds back those of all other tabs
#
# Guess:     Each tab's WebSocket connects independently. A server that is slow to answer one handshake delays that one.
# Behaviour: Chromium sends the handshake of a second WebSocket to the same address only when the first has been answered,
#            also from another tab of the profile (RFC 6455, section 4.1, allows one connection in the CONNECTING state).
#            fetch() to the same address goes out at once.
# Matters:   A server that looks up a session before it answers the handshake makes a person's tabs wait in line. Answer
#            the handshake at once, and authenticate in the first message.
# Seen:      fetch while /first waits: 200
#            handshakes seen while /first waits: /first
#            handshakes seen after its answer: /first /second
# Versions:  Chromium 156.0.8078.108 (Debian 12), playwright 1.65.2, Python 3.11
# Needs:     Chromium (Debian: chromium)
# Checked:   2026-11-27
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
OPEN = "path => { window.socket = new WebSocket('ws://' + location.host + path); }"
OPENED = "() => window.socket.readyState === WebSocket.OPEN"


class Server:
    """Answer each handshake but that of /first, which waits for `answer_first`."""

    def __init__(self):
        self.handshakes = []
        self.answer_first = asyncio.Event()

    async def accept(self, reader, writer):
        try:
            await self.answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split(b" ")[1].decode()
        headers = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:-2])
        if b"Sec-WebSocket-Key" not in headers:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n")
            writer.write(b"Connection: close\r\n\r\nhello")
            await writer.drain()
            return
        self.handshakes.append(path)
        if path == "/first":
            await self.answer_first.wait()
        accept = base64.b64encode(hashlib.sha1(headers[b"Sec-WebSocket-Key"] + GUID).digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        await reader.read(100)


async def main():
    server = Server()
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        print("Chromium", browser.version)
        context = await browser.new_context()
        one, two = await context.new_page(), await context.new_page()
        await one.goto(url)
        await two.goto(url)
        await one.evaluate(OPEN, "/first")
        while not server.handshakes:
            await asyncio.sleep(0.05)
        await two.evaluate(OPEN, "/second")
        status = await two.evaluate("fetch('/').then(response => response.status)")
        await asyncio.sleep(2)
        waiting = list(server.handshakes)
        server.answer_first.set()
        await two.wait_for_function(OPENED, timeout=20_000)
        answered = list(server.handshakes)
        await browser.close()
    listening.close()
    print("fetch while /first waits:", status)
    print("handshakes seen while /first waits:", *waiting)
    print("handshakes seen after its answer:", *answered)
    return status == 200 and waiting == ["/first"] and answered == ["/first", "/second"]


if not asyncio.run(asyncio.wait_for(main(), 100)):
    sys.exit("The behaviour has changed.")
PYTHON
