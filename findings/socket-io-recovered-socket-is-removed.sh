#!/bin/bash
# Socket.IO: a recovered socket receives nothing more when an older connection of the same client ends
#
# Guess:     With connection state recovery, a client that was recovered is in its rooms until its own connection ends.
# Behaviour: A session that was recovered stays in the in-memory adapter, and can be recovered again within two minutes. If the
#            server has not noticed the end of the client's last connection by then, two sockets have one id. When the older one
#            ends, the newer one is taken out of its rooms and of the namespace. Its connection stays open, and receives nothing.
# Matters:   A phone that changes its network twice in two minutes receives nothing from the moment at which the server notices
#            that the old connection is gone, until it reconnects. Neither side gets an error.
# Seen:      recovered: true, again: true, same id: true
#            before the old connection ends: received
#            after it: nothing; sockets 0, connections 1
# Versions:  socket.io 4.8.4, socket.io-adapter 2.5.9, ws 8.23.0, Node 20.20
# Checked:   2026-11-28
set -euo pipefail
for program in node npm; do
    command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 2; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts socket.io@4.8.4 socket.io-adapter@2.5.9 ws@8.23.0

timeout 60 node - <<'NODE'
const { createServer } = require('http');
const { once } = require('events');
const { Server } = require('socket.io');
const WebSocket = require('ws');

const http = createServer();
const io = new Server(http, { transports: ['websocket'], connectionStateRecovery: {} });
const recovered = [];
io.on('connection', (socket) => recovered.push(socket.recovered));

const soon = (ms) => new Promise((done) => setTimeout(done, ms));

// A client by the protocol itself, so that an old connection can stay open.
async function connect(port, session) {
  const client = { texts: [] };
  client.socket = new WebSocket(`ws://127.0.0.1:${port}/socket.io/?EIO=4&transport=websocket`);
  client.socket.on('message', (data) => {
    const text = String(data);
    if (text[0] === '0') client.socket.send('40' + JSON.stringify(session ?? {}));
    if (text.startsWith('40')) Object.assign(client, JSON.parse(text.slice(2)));
    if (text.startsWith('42')) client.texts.push(JSON.parse(text.slice(2)));
  });
  while (!client.sid) await soon(10);
  return client;
}

async function main() {
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const { port } = http.address();
  const first = await connect(port);
  io.emit('message', 'one');
  await soon(200);
  const session = { pid: first.pid, offset: first.texts[0].at(-1) };
  first.socket.terminate();
  await soon(200);
  const second = await connect(port, session);
  const third = await connect(port, session); // the second one is still open
  console.log(`recovered: ${recovered[1]}, again: ${recovered[2]}, same id: ${second.sid === third.sid}`);
  const hears = async (text) => {
    io.emit('message', text);
    await soon(300);
    return third.texts.some((each) => each[1] === text);
  };
  const before = await hears('two');
  second.socket.terminate();
  await soon(300);
  const after = await hears('three');
  console.log(`before the old connection ends: ${before ? 'received' : 'nothing'}`);
  console.log(`after it: ${after ? 'received' : 'nothing'}; sockets ${io.sockets.sockets.size}, connections ${io.engine.clientsCount}`);
  process.exit(before && !after ? 0 : 1);
}
main();
NODE
