// The response stream of a handler made by awslambda.streamifyResponse: a chunked POST on the connection to the
// platform.
//
// Back-pressure is the socket's: a write is done when the kernel has taken it.

'use strict';

const { Writable } = require('stream');
const { RuntimeError } = require('./errors.cjs');

const CONTENT_TYPE = 'application/octet-stream';
const LAST_CHUNK = '0\r\n';

class ResponseStream extends Writable {
  constructor(api, invocation, onPosted, highWaterMark) {
    super(highWaterMark === undefined ? {} : { highWaterMark });
    this.api = api;
    this.invocation = invocation;
    this.onPosted = onPosted;
    this.contentType = CONTENT_TYPE;
    this.prelude = null; // set by awslambda.HttpResponseStream.from
    this.begun = false;
    this.aborted = false;
    for (const name of ['api', 'invocation', 'onPosted']) Object.defineProperty(this, name, { enumerable: false });
  }

  setContentType(contentType) {
    if (this.begun) {
      throw new RuntimeError('Runtime.InvalidStreamingOperation', 'Cannot set content-type, too late.');
    }
    this.contentType = String(contentType).replace(/[\r\n]/g, '');
  }

  /** Values that are neither text nor bytes are sent as JSON. */
  write(chunk, encoding, callback) {
    return super.write(asBytes(chunk), encoding, callback);
  }

  end(chunk, encoding, callback) {
    const none = chunk === undefined || chunk === null || typeof chunk === 'function'; // end(callback)
    return super.end(none ? chunk : asBytes(chunk), encoding, callback);
  }

  _write(chunk, _encoding, callback) {
    this.send([chunk], callback);
  }

  _writev(items, callback) {
    this.send(
      items.map((item) => item.chunk),
      callback,
    );
  }

  _final(callback) {
    const { socket } = this.api;
    socket.cork();
    this.begin();
    socket.write(LAST_CHUNK + '\r\n', 'latin1', () => callback());
    socket.uncork();
  }

  send(chunks, callback) {
    if (this.aborted) return callback();
    const { socket } = this.api;
    socket.cork();
    this.begin();
    const done = () => callback();
    const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    if (length === 0) {
      process.nextTick(done); // an empty chunk would end the response
    } else {
      socket.write(length.toString(16) + '\r\n', 'latin1');
      for (const chunk of chunks) socket.write(chunk);
      socket.write('\r\n', 'latin1', done);
    }
    socket.uncork();
  }

  begin() {
    if (this.begun) return;
    this.begun = true;
    this.api.beginStream(this.invocation, this.contentType, this.onPosted);
    if (this.prelude !== null) {
      const bytes = Buffer.from(this.prelude);
      this.api.socket.write(bytes.length.toString(16) + '\r\n', 'latin1');
      this.api.socket.write(bytes);
      this.api.socket.write('\r\n', 'latin1');
    }
  }

  /** The response has begun and failed: the error goes into trailers. */
  abort(error) {
    if (this.aborted || this.writableFinished) return;
    this.aborted = true;
    this.api.socket.write(
      LAST_CHUNK +
        `Lambda-Runtime-Function-Error-Type: ${error.type}\r\n` +
        `Lambda-Runtime-Function-Error-Body: ${Buffer.from(error.body).toString('base64')}\r\n\r\n`,
      'latin1',
    );
    this.destroy();
  }
}

function asBytes(chunk) {
  return typeof chunk === 'string' || chunk instanceof Uint8Array ? chunk : JSON.stringify(chunk);
}

module.exports = { ResponseStream };
