#!/bin/bash
# Chromium: the WebSocket of a page that has been left stays open and answers pings
#
# Guess:     Following a link closes the page's WebSocket, or the open WebSocket keeps the page out of the back/forward cache.
# Behaviour: The page is kept in the cache with its WebSocket. The browser keeps answering the server's pings, but no script of
#            the page runs, so nobody handles what the server sends. When the user comes back, the page continues, and the
#            WebSocket closes: the server sees 1001, the page 1006.
# Matters:   The server believes that the user is there and reads. Messages that it reports as delivered are lost. Close the
#            WebSocket on pagehide, and connect again on pageshow.
# Seen:      the page is shown: pongs, close none
#            another page is shown: pongs, close none
#            the page is shown again: close 1001; to the page, persisted true: 1006
# Versions:  Chromium 156.0.8078.108 (Debian 12), playwright 1.65.2, websockets 17.4, Python 3.11
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
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check playwright==1.65.2 websockets==17.4

timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import os
import shutil
import sys

from playwright.async_api import async_playwright
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response

PAGE = """<!doctype html><title>page</title><a href="/other">other</a><script>
const socket = new WebSocket("ws://" + location.host + "/socket");
socket.onclose = event => { document.body.dataset.code = event.code };
addEventListener("pageshow", event => { document.body.dataset.persisted = event.persisted });
</script>"""


def page(connection, request):
    if "Upgrade" in request.headers:
        return None
    body = (PAGE if request.path == "/" else "<!doctype html><title>other</title>").encode()
    headers = Headers([("Content-Type", "text/html"), ("Content-Length", str(len(body))), ("Connection", "close")])
    return Response(200, "OK", headers, body)


class Server:
    pongs = 0
    code = "none"

    async def handle(self, connection):
        try:
            while True:
                await asyncio.wait_for(await connection.ping(), 5)
                self.pongs += 1
                await asyncio.sleep(0.25)
        except ConnectionClosed:
            self.code = connection.close_code

    async def seen(self):
        """Give what comes in the next two seconds."""
        self.pongs = 0
        await asyncio.sleep(2)
        return ("pongs" if self.pongs > 4 else f"{self.pongs} pongs"), self.code


async def main():
    server = Server()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with serve(server.handle, "127.0.0.1", 0, process_request=page, ping_interval=None) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        async with async_playwright() as playwright:
            # Playwright turns the cache off unless it is told otherwise.
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=arguments,
                ignore_default_args=["--disable-back-forward-cache"],
            )
            print("Chromium", browser.version)
            tab = await browser.new_page()
            await tab.goto(url)
            shown = await server.seen()
            await tab.click("a")
            await tab.wait_for_function("document.title === 'other'")
            away = await server.seen()
            await tab.evaluate("history.back()")
            await asyncio.sleep(2)
            back = (server.code, await tab.evaluate("({...document.body.dataset})"))
            await browser.close()
    print("the page is shown: {}, close {}".format(*shown))
    print("another page is shown: {}, close {}".format(*away))
    print(f"the page is shown again: close {back[0]}; to the page, persisted {back[1]['persisted']}: {back[1]['code']}")
    return shown == away == ("pongs", "none") and back == (1001, {"code": "1006", "persisted": "true"})


if not asyncio.run(asyncio.wait_for(main(), 100)):
    sys.exit("The behaviour has changed.")
PYTHON
