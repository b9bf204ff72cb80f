// Peer of bench/jitter.py: Socket.IO, configured as its documentation advises for delivery.
//
//     node bench/peers/socket_io.cjs PORT yes|no
//
// The last word says whether connection state recovery is on, with the default in-memory adapter and the default two
// minutes. session-N is the SESSID of user-N; each user has a room for all devices. A message is acknowledged when it has
// been emitted to the recipient's room and to the sender's other devices. A message that was sent again, with an id that
// is known, is acknowledged and not emitted a second time.
'use strict';

const { createServer } = require('http');
const { Server } = require('socket.io');

const [port, recovery] = process.argv.slice(2);
const http = createServer();
const io = new Server(http, {
  transports: ['websocket'],
  ...(recovery === 'yes' ? { connectionStateRecovery: {} } : {}),
});
const taken = new Set();

io.use((socket, next) => {
  const found = /^session-(\d+)$/.exec(socket.handshake.auth.token);
  if (!found) return next(new Error('denied'));
  socket.data.uid = `user-${found[1]}`;
  next();
});

io.on('connection', (socket) => {
  const { uid } = socket.data;
  socket.join(uid); // a recovered socket is in its room already
  socket.on('message', ({ id, to, content, timeStamp }, acknowledge) => {
    if (!taken.has(id)) {
      taken.add(id);
      const message = { from: uid, to, content, timeStamp };
      io.to(to).emit('message', message);
      socket.to(uid).emit('message', message);
    }
    acknowledge();
  });
});

http.listen(Number(port), '127.0.0.1', 4096);

// A client without a network answers no close frame.
const DRAIN_MS = 1000;
process.on('SIGTERM', () => {
  io.close(() => process.exit(0));
  setTimeout(() => process.exit(0), DRAIN_MS);
});
