// The Runtime API of Lambda on one TCP connection, without the http module: a warm request is one read and one write.
//
// Requests are pipelined: each pushes a receiver for its answer, and answers come in order. The socket keeps the
// process alive only while it waits for an invocation, so that "the event loop is empty" can be seen in between.

'use strict';

const net = require('net');
const { AnswerReader } = require('./answers.cjs');

const ROOT = '/2018-06-01/runtime';
const READ_BYTES = 65_536;
const ONE_STRING_MAX = 65_536; // above it, joining the pieces costs more than a vectored write
const ERROR_CAUSE_MAX_BYTES = 65_536; // the platform would crop it

class RuntimeApi {
  /**
   * @param {string} address host:port, the value of AWS_LAMBDA_RUNTIME_API
   * @param {(error?: Error) => void} onClosed the platform has closed the connection, or said what is not HTTP
   */
  constructor(address, onClosed) {
    const colon = address.lastIndexOf(':');
    const host = (colon < 0 ? address : address.slice(0, colon)).replace(/^\[(.*)\]$/, '$1');
    const port = colon < 0 ? 80 : +address.slice(colon + 1);
    this.hostLine = ` HTTP/1.1\r\nHost: ${address}\r\n`;
    this.nextRequest = `GET ${ROOT}/invocation/next${this.hostLine}\r\n`;
    this.receivers = [];
    const reader = new AnswerReader((...answer) => this.receive(...answer));
    let failure;
    const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
    this.socket = net.connect({
      host,
      port,
      onread: {
        buffer,
        callback(count) {
          try {
            reader.feed(count === READ_BYTES ? buffer : buffer.subarray(0, count));
          } catch (error) {
            failure = error;
            this.destroy();
          }
          return true;
        },
      },
    });
    this.socket.unref();
    this.socket.setNoDelay(true);
    let connected = false;
    this.socket.on('connect', () => {
      connected = true;
    });
    this.socket.on('error', (error) => {
      if (!connected) failure = error; // 'close' follows
    });
    this.socket.on('close', () => {
      try {
        reader.end();
      } finally {
        onClosed(failure);
      }
    });
  }

  receive(status, headers, buffer, start, end) {
    const receiver = this.receivers.shift();
    if (receiver === undefined) throw new Error('an answer without a request');
    receiver(status, headers, buffer, start, end);
  }

  /** Ask for the next invocation; the process stays alive until it comes. */
  next(onInvocation) {
    this.receivers.push(onInvocation);
    this.socket.ref();
    this.socket.write(this.nextRequest, 'latin1');
  }

  /** Answer an invocation and ask for the next one, in one write. `body` is text. */
  respond(invocation, contentType, body, onPosted, onInvocation) {
    this.receivers.push(onPosted, onInvocation);
    this.socket.ref();
    this.post(this.invocationHead(invocation, 'response') + `Content-Type: ${contentType}\r\n`, body, this.nextRequest);
  }

  /** Report that an invocation failed, and ask for the next one unless `onInvocation` is missing. */
  respondError(invocation, error, onPosted, onInvocation) {
    this.receivers.push(onPosted);
    if (onInvocation !== undefined) this.receivers.push(onInvocation);
    this.socket.ref();
    const head = this.invocationHead(invocation, 'error') + errorLines(error);
    this.post(head, error.body, onInvocation === undefined ? '' : this.nextRequest);
  }

  initError(error, onPosted) {
    this.receivers.push(onPosted);
    this.socket.ref();
    this.post(`POST ${ROOT}/init/error${this.hostLine}${errorLines(error)}`, error.body, '');
  }

  /** Begin a streamed response; what follows is written by the caller, in chunks. */
  beginStream(invocation, contentType, onPosted) {
    this.receivers.push(onPosted);
    this.socket.write(
      this.invocationHead(invocation, 'response') +
        `Content-Type: ${contentType}\r\n` +
        'Lambda-Runtime-Function-Response-Mode: streaming\r\n' +
        'Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n' +
        'Transfer-Encoding: chunked\r\n\r\n',
      'latin1',
    );
  }

  invocationHead(invocation, what) {
    const { id, attempt } = invocation;
    const echo = attempt === undefined ? '' : `Lambda-Runtime-Invocation-Id: ${attempt}\r\n`;
    return `POST ${ROOT}/invocation/${id}/${what}${this.hostLine}${echo}`;
  }

  post(head, body, following) {
    const bytes = Buffer.byteLength(body);
    const start = `${head}Content-Length: ${bytes}\r\n\r\n`;
    // Text of as many bytes as characters is ASCII, which V8 holds in one byte each: 'latin1' copies it as it is.
    const encoding = bytes === body.length ? 'latin1' : 'utf8';
    if (bytes <= ONE_STRING_MAX) {
      this.socket.write(start + body + following, encoding);
      return;
    }
    this.socket.cork();
    this.socket.write(start, 'latin1');
    this.socket.write(body, encoding);
    if (following !== '') this.socket.write(following, 'latin1');
    this.socket.uncork();
  }
}

function errorLines(error) {
  const lines = `Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: ${error.type}\r\n`;
  if (error.cause === undefined || error.cause.length > ERROR_CAUSE_MAX_BYTES) return lines;
  return `${lines}Lambda-Runtime-Function-XRay-Error-Cause: ${error.cause}\r\n`;
}

module.exports = { RuntimeApi };
