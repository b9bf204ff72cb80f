// Peer: Node with the library ws, as its documentation shows it.
//
//     node bench/peers/node_ws.cjs PORT [URL of the session page]
//
// With a URL, it asks the session page whose session a SESSID is, with undici, as chatrelay does with treq. Without a
// URL, any SESSID is the uID.
'use strict';

const { WebSocketServer } = require('ws');
const { Pool } = require('undici');

const [port, webserver] = process.argv.slice(2);
const members = new Map();
const url = webserver && new URL(webserver);
const pool = webserver && new Pool(url.origin, { connections: 32 });

async function uidOf(sessid) {
  if (!pool) return sessid;
  const { statusCode, body } = await pool.request({
    path: url.pathname,
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: new URLSearchParams({ SESSID: sessid }).toString(),
  });
  const answer = await body.json();
  return statusCode === 200 && answer.loggedin === true ? String(answer.uID) : null;
}

function enter(connection, uid) {
  connection.uid = uid;
  const here = members.get(uid);
  if (here) here.push(connection);
  else members.set(uid, [connection]);
}

function received(data) {
  const request = JSON.parse(data);
  if (request.type === 'auth-request') {
    uidOf(request.SESSID).then(
      (uid) => {
        if (uid !== null && this.readyState === this.OPEN) enter(this, uid);
        this.send(JSON.stringify({ type: 'auth-response', response: uid !== null }));
      },
      () => this.send('{"type":"auth-response","response":false,"reason":"webserver-unavailable"}'),
    );
  } else if (request.type === 'message-send-request' && this.uid !== undefined) {
    const { timeStamp, touID, content } = request.message;
    const here = members.get(String(touID));
    const response = { id: request.id, value: here !== undefined };
    if (here) {
      const frame = JSON.stringify({ type: 'message', message: { timeStamp, fromuID: this.uid, touID, content } });
      for (const member of here) member.send(frame);
    } else {
      response.reason = 'receiving-user-not-connected';
    }
    this.send(JSON.stringify({ type: 'send-request-response', response }));
  }
}

function closed() {
  if (this.uid === undefined) return;
  const rest = members.get(this.uid).filter((other) => other !== this);
  if (rest.length) members.set(this.uid, rest);
  else members.delete(this.uid);
}

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(port), perMessageDeflate: false, backlog: 511 });
server.on('connection', (connection) => {
  connection.on('message', received);
  connection.on('close', closed);
  connection.on('error', () => {});
});
