// Reads HTTP/1.1 answers from a byte stream, however it is cut into packets.
//
// `feed(chunk)` takes the next bytes (they may be overwritten afterwards) and calls `onAnswer(status, headers, buffer,
// start, end)` for each complete answer; header names are in lower case, the body is buffer[start:end] and must not be
// kept. Anything that is not HTTP throws. A body is copied at most once, and not at all when it came with its head.

'use strict';

const HEAD_END = Buffer.from('\r\n\r\n');
const LINE_END = Buffer.from('\r\n');
const HEAD_MAX_BYTES = 1_048_576; // AWS's limit of request line and headers; client context travels in one
const STATUS_LINE = /^HTTP\/1\.[01] ([1-5]\d\d)/;
const HEAD = 0;
const BODY = 1;
const CHUNK_HEAD = 2;
const CHUNK = 3;
const CHUNK_END = 4;
const TRAILERS = 5;
const UNTIL_CLOSE = 6;

class AnswerReader {
  constructor(onAnswer) {
    this.onAnswer = onAnswer;
    this.state = HEAD;
    this.line = null; // the start of a head or a line that is not complete yet
    this.status = 0;
    this.headers = null;
    this.body = null; // where a body that comes in several packets is gathered
    this.filled = 0;
    this.missing = 0; // bytes of the body or of the chunk
    this.pieces = null; // chunks of a chunked body
  }

  feed(chunk) {
    let at = 0;
    do {
      at = this.step(chunk, at);
    } while (at < chunk.length);
  }

  /** The connection has ended: true when this completes an answer (one without a length) or none was begun. */
  end() {
    if (this.state === UNTIL_CLOSE) {
      this.finishPieces();
      return true;
    }
    return this.state === HEAD && this.line === null;
  }

  step(chunk, at) {
    switch (this.state) {
      case HEAD:
        return this.readHead(chunk, at);
      case BODY:
        return this.readBody(chunk, at);
      case CHUNK:
        return this.readChunk(chunk, at);
      case UNTIL_CLOSE:
        this.pieces.push(Buffer.from(chunk.subarray(at)));
        return chunk.length;
      default:
        return this.readLine(chunk, at);
    }
  }

  readHead(chunk, at) {
    if (this.line === null) {
      const end = chunk.indexOf(HEAD_END, at);
      if (end >= 0) {
        this.parseHead(chunk, at, end);
        return this.afterHead(chunk, end + 4);
      }
    }
    const had = this.line === null ? 0 : this.line.length;
    const head = had === 0 ? Buffer.from(chunk.subarray(at)) : Buffer.concat([this.line, chunk.subarray(at)]);
    const end = head.indexOf(HEAD_END, Math.max(0, had - 3));
    if (end < 0) {
      if (head.length > HEAD_MAX_BYTES) throw new Error('the head of an answer is larger than 1 MiB');
      this.line = head;
      return chunk.length;
    }
    this.line = null;
    this.parseHead(head, 0, end);
    return this.afterHead(chunk, at + end + 4 - had);
  }

  parseHead(buffer, start, end) {
    const text = buffer.toString('utf8', start, end);
    let from = text.indexOf('\r\n');
    const status = STATUS_LINE.exec(from < 0 ? text : text.slice(0, from));
    if (status === null) throw new Error('not an HTTP answer');
    this.status = +status[1];
    const headers = (this.headers = {});
    while (from >= 0) {
      const to = text.indexOf('\r\n', from + 2);
      const colon = text.indexOf(':', from + 2);
      const stop = to < 0 ? text.length : to;
      if (colon > 0 && colon < stop) {
        headers[text.slice(from + 2, colon).toLowerCase()] = text.slice(colon + 1, stop).trim();
      }
      from = to;
    }
  }

  /** What follows the head; `at` is its first byte, which may not have come yet. */
  afterHead(chunk, at) {
    const { status, headers } = this;
    if (status < 200) return at; // an interim answer; the state is still HEAD
    if (status === 204 || status === 304) return this.finish(chunk, at, at);
    const coding = headers['transfer-encoding'];
    if (coding !== undefined && coding.toLowerCase().endsWith('chunked')) {
      this.pieces = [];
      this.state = CHUNK_HEAD;
      return at;
    }
    const length = headers['content-length'];
    if (length === undefined) {
      this.pieces = [];
      this.state = UNTIL_CLOSE;
      return at;
    }
    if (!/^\d{1,15}$/.test(length)) throw new Error(`a Content-Length of ${length}`);
    const bytes = +length;
    if (chunk.length - at >= bytes) return this.finish(chunk, at, at + bytes);
    this.body = Buffer.allocUnsafe(bytes);
    this.filled = 0;
    this.missing = bytes;
    this.state = BODY;
    return at < chunk.length ? this.readBody(chunk, at) : at;
  }

  readBody(chunk, at) {
    const end = Math.min(chunk.length, at + this.missing);
    chunk.copy(this.body, this.filled, at, end);
    this.filled += end - at;
    this.missing -= end - at;
    if (this.missing === 0) {
      const { body } = this;
      this.body = null;
      this.finish(body, 0, body.length);
    }
    return end;
  }

  readChunk(chunk, at) {
    const end = Math.min(chunk.length, at + this.missing);
    this.pieces.push(Buffer.from(chunk.subarray(at, end)));
    this.missing -= end - at;
    if (this.missing === 0) this.state = CHUNK_END;
    return end;
  }

  readLine(chunk, at) {
    const had = this.line === null ? 0 : this.line.length;
    const line = had === 0 ? chunk.subarray(at) : Buffer.concat([this.line, chunk.subarray(at)]);
    const end = line.indexOf(LINE_END);
    if (end < 0) {
      if (line.length > HEAD_MAX_BYTES) throw new Error('a line of a chunked answer is larger than 1 MiB');
      this.line = Buffer.from(line);
      return chunk.length;
    }
    this.line = null;
    this.takeLine(line.toString('latin1', 0, end));
    return at + end + 2 - had;
  }

  takeLine(text) {
    if (this.state === CHUNK_END) {
      this.state = CHUNK_HEAD;
    } else if (this.state === TRAILERS) {
      if (text === '') this.finishPieces();
    } else {
      if (!/^[0-9a-fA-F]{1,8}\s*(;|$)/.test(text)) throw new Error(`a chunk length of ${text.slice(0, 20)}`);
      this.missing = parseInt(text, 16);
      this.state = this.missing === 0 ? TRAILERS : CHUNK;
    }
  }

  finishPieces() {
    const body = Buffer.concat(this.pieces);
    this.pieces = null;
    this.finish(body, 0, body.length);
  }

  finish(buffer, start, end) {
    this.state = HEAD;
    this.onAnswer(this.status, this.headers, buffer, start, end);
    return end;
  }
}

module.exports = { AnswerReader };
