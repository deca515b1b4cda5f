// A pre-booted process: rehearse what a start touches, wait for one order, become the function's process.
//
// The order is JSON on a stream socket, {"environ": {...}, "task_root": "..."}; it ends where the peer shuts down its
// side. No order at all means that the process is not needed.

'use strict';

const fs = require('fs');
const net = require('net');
const { RuntimeApi } = require('./api.cjs');
const { RuntimeError, errorDocument, errorLine } = require('./errors.cjs');
const { loadHandler } = require('./handler.cjs');
const logs = require('./logs.cjs');
const { Runtime, loadStreams } = require('./runtime.cjs');

const READ_BYTES = 65_536;
const REHEARSED_INVOCATIONS = 20;
const LOOPBACK = '127.0.0.1';

/** @returns {Promise<object | null>} the order; null when the peer closed without one */
async function waitForOrder(fd) {
  await rehearse().catch(() => {}); // a sandbox without a loopback interface only starts more slowly
  const text = await readAll(fd);
  return text === '' ? null : JSON.parse(text);
}

/** Replace the environment variables, the time zone and the working directory. */
function become(order) {
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, order.environ); // setting TZ also resets the clock of V8
  require('module').Module._initPaths(); // NODE_PATH
  process.chdir(order.task_root);
}

/** Blocking reads: waiting costs no CPU, and no turn of the event loop on the way out. */
async function readAll(fd) {
  const pieces = [];
  for (;;) {
    const piece = Buffer.allocUnsafe(READ_BYTES);
    let count;
    try {
      count = fs.readSync(fd, piece, 0, READ_BYTES, null);
    } catch (error) {
      if (error.code === 'EINTR') continue;
      if (error.code !== 'EAGAIN') throw error;
      return Buffer.concat([...pieces, await readRest(fd)]).toString(); // a descriptor that does not block
    }
    if (count === 0) {
      fs.closeSync(fd);
      return Buffer.concat(pieces).toString();
    }
    pieces.push(piece.subarray(0, count));
  }
}

async function readRest(fd) {
  const pieces = [];
  const socket = new net.Socket({ fd, readable: true, writable: false });
  for await (const piece of socket) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** Serve invocations of a little platform of our own, so that everything has been loaded and compiled once. */
async function rehearse() {
  // ECMAScript modules, but no file of one: reading it would start the pool of threads before UV_THREADPOOL_SIZE is
  // known.
  const warm = Promise.allSettled([
    import('data:text/javascript,export default 0'),
    import('file:///var/runtime/no-such-module.mjs'),
  ]);
  void fs.promises;
  errorDocument(new RuntimeError('Runtime.Rehearsal', errorLine(new Error('rehearsal'))));
  require('url').pathToFileURL('/rehearsal');
  JSON.stringify(await readAll(fs.openSync(__filename)));
  become({ environ: { ...process.env }, task_root: process.cwd() });
  logs.patchConsole({});
  loadStreams();
  await warm;
  const handler = await loadHandler(__dirname, 'rehearsal.handler');
  const server = net.createServer((socket) => platform(socket)).listen(0, LOOPBACK);
  try {
    await new Promise((done, failed) => server.once('listening', done).once('error', failed));
    await new Promise((done) => {
      const api = new RuntimeApi(`${LOOPBACK}:${server.address().port}`, done);
      api.socket.ref();
      new Runtime(api, process.env).serve(handler);
    });
  } finally {
    server.close();
    logs.current.id = undefined;
    logs.current.tenantId = undefined;
  }
}

function platform(socket) {
  const body = '{"a":[1,2.5,"b",null]}';
  const invocation =
    'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: rehearsal\r\n' +
    'Lambda-Runtime-Deadline-Ms: 1\r\nLambda-Runtime-Trace-Id: Root=1\r\n' +
    `Lambda-Runtime-Invoked-Function-Arn: arn\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  let count = 0;
  socket.on('error', () => {});
  socket.on('data', () => {
    count += 1;
    if (count > REHEARSED_INVOCATIONS) socket.destroy();
    else socket.write((count > 1 ? 'HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n' : '') + invocation);
  });
}

module.exports = { become, waitForOrder };
