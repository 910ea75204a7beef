'use strict';
// What is published at /publish goes to every other client; what they send comes back to them.
// `node server.js deflate` takes permessage-deflate as ws has it by default. The port is printed.
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  backlog: 4096,
  perMessageDeflate: process.argv[2] === 'deflate',
});

server.on('connection', (socket, request) => {
  const publisher = request.url === '/publish';
  socket.on('error', () => socket.terminate());
  socket.on('message', (data) => {
    if (!publisher) return socket.send(data, { binary: false });
    for (const client of server.clients) if (client !== socket) client.send(data, { binary: false });
  });
});
server.on('listening', () => console.log(server.address().port));
