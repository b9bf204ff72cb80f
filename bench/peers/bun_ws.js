// Peer: Bun's own WebSocket server (uWebSockets, in C++), as its documentation shows it.
//
//     bun bench/peers/bun_ws.js PORT

const members = new Map();

Bun.serve({
  hostname: '127.0.0.1',
  port: Number(Bun.argv[2]),
  fetch(request, server) {
    if (server.upgrade(request, { data: { uid: undefined } })) return;
    return new Response('WebSocket only', { status: 426 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    message(connection, text) {
      const request = JSON.parse(text);
      if (request.type === 'auth-request') {
        const uid = request.SESSID;
        connection.data.uid = uid;
        const here = members.get(uid);
        if (here) here.push(connection);
        else members.set(uid, [connection]);
        connection.send('{"type":"auth-response","response":true}');
      } else if (request.type === 'message-send-request' && connection.data.uid !== undefined) {
        const { timeStamp, touID, content } = request.message;
        const here = members.get(String(touID));
        const response = { id: request.id, value: here !== undefined };
        if (here) {
          const message = { timeStamp, fromuID: connection.data.uid, touID, content };
          const frame = JSON.stringify({ type: 'message', message });
          for (const member of here) member.send(frame);
        } else {
          response.reason = 'receiving-user-not-connected';
        }
        connection.send(JSON.stringify({ type: 'send-request-response', response }));
      }
    },
    close(connection) {
      const uid = connection.data.uid;
      if (uid === undefined) return;
      const rest = members.get(uid).filter((other) => other !== connection);
      if (rest.length) members.set(uid, rest);
      else members.delete(uid);
    },
  },
});
