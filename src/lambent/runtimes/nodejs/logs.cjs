// The function's log: console methods write records in Lambda's text or JSON format, at once and completely.
//
// With _LAMBDA_TELEMETRY_LOG_FD a record is a frame (u32 type, u32 length, u64 microseconds, big endian), so that it
// stays one event whatever it contains; without, it is a line of stdout and its line feeds become carriage returns.

'use strict';

const fs = require('fs');
const { format } = require('util');
const { describe, errorLine, isError, nestedErrors } = require('./errors.cjs');

const LEVELS = { TRACE: 1, DEBUG: 2, INFO: 3, WARN: 4, ERROR: 5, FATAL: 6 };
const METHODS = {
  trace: 'TRACE',
  debug: 'DEBUG',
  log: 'INFO',
  info: 'INFO',
  warn: 'WARN',
  error: 'ERROR',
  fatal: 'FATAL',
};
const FRAME_BASE = 0xa55a0000;
const FRAME_HEAD_BYTES = 16;
const JSON_FRAME = 2;
const TEXT_FRAME = 3;
const SCRATCH_BYTES = 8_192;
const PAUSE_MS = 1;

/** @type {{id: string | undefined, tenantId: string | undefined}} whose records these are; `undefined` during init */
const current = { id: undefined, tenantId: undefined };
const scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES);
let pause = null;
let jsonFormat = false;
let lowest = LEVELS.TRACE;
let frameFd = -1;

/** Take over the console, as AWS_LAMBDA_LOG_FORMAT, AWS_LAMBDA_LOG_LEVEL and _LAMBDA_TELEMETRY_LOG_FD say. */
function patchConsole(environ) {
  jsonFormat = (environ.AWS_LAMBDA_LOG_FORMAT ?? '').toUpperCase() === 'JSON';
  lowest = LEVELS[(environ.AWS_LAMBDA_LOG_LEVEL ?? '').toUpperCase()] ?? LEVELS.TRACE;
  const fd = parseInt(environ._LAMBDA_TELEMETRY_LOG_FD ?? '', 10);
  frameFd = fd >= 0 ? fd : -1;
  delete environ._LAMBDA_TELEMETRY_LOG_FD; // it is of no use to a child process
  for (const [method, level] of Object.entries(METHODS)) {
    console[method] = LEVELS[level] < lowest ? () => {} : (...values) => record(level, values);
  }
}

function record(level, values) {
  const now = new Date();
  const line = jsonFormat ? jsonRecord(now, level, values) : textRecord(now, level, format(...values));
  emit(now, level, line);
}

/** Report an error of the function: `Invoke Error \t{...}` in text, the error itself in JSON. */
function logError(label, error) {
  if (lowest <= LEVELS.ERROR) record('ERROR', jsonFormat ? [error] : ['%s', `${label} \t${errorLine(error)}`]);
}

/** Something of ours that the owner of the function should know. */
function logWarning(message) {
  if (lowest <= LEVELS.WARN) record('WARN', ['%s', `LAMBENT_WARNING: ${message}`]);
}

function textRecord(now, level, message) {
  return `${now.toISOString()}\t${current.id}\t${level}\t${message}`;
}

function jsonRecord(now, level, values) {
  const head = { timestamp: now.toISOString(), level, requestId: current.id, tenantId: current.tenantId };
  if (values.length === 1) {
    try {
      return JSON.stringify({ ...head, message: values[0] }, nestedErrors('stackTrace'));
    } catch {
      // circular, or a BigInt: as text
    }
  }
  const body = { ...head, message: format(...values) };
  const error = values.find(isError);
  if (error !== undefined) {
    const { errorType, errorMessage, stack } = describe(error);
    Object.assign(body, { errorType, errorMessage, stackTrace: stack });
  }
  return JSON.stringify(body);
}

function emit(now, level, line) {
  if (frameFd < 0) {
    const text = line.includes('\n') ? line.replace(/\n/g, '\r') : line;
    writeText(1, text + '\n');
    return;
  }
  const bytes = Buffer.byteLength(line);
  const frame = bytes + FRAME_HEAD_BYTES <= SCRATCH_BYTES ? scratch : Buffer.allocUnsafe(bytes + FRAME_HEAD_BYTES);
  const micros = now.getTime() * 1000;
  frame.writeUInt32BE(FRAME_BASE + LEVELS[level] * 4 + (jsonFormat ? JSON_FRAME : TEXT_FRAME), 0);
  frame.writeUInt32BE(bytes, 4);
  frame.writeUInt32BE(Math.floor(micros / 0x1_0000_0000), 8);
  frame.writeUInt32BE(micros % 0x1_0000_0000, 12);
  frame.write(line, FRAME_HEAD_BYTES, bytes, 'utf8');
  writeAll(frameFd, frame, bytes + FRAME_HEAD_BYTES);
}

function writeText(fd, text) {
  if (text.length * 3 > SCRATCH_BYTES) {
    const bytes = Buffer.from(text);
    writeAll(fd, bytes, bytes.length);
  } else {
    writeAll(fd, scratch, scratch.write(text, 0, 'utf8'));
  }
}

/** Write everything, although the pipe may be full and not blocking; a reader that is gone is no error. */
function writeAll(fd, buffer, length) {
  let written = 0;
  while (written < length) {
    try {
      written += fs.writeSync(fd, buffer, written, length - written);
    } catch (error) {
      if (error.code !== 'EAGAIN' && error.code !== 'EINTR') return;
      pause ??= new Int32Array(new SharedArrayBuffer(4));
      Atomics.wait(pause, 0, 0, PAUSE_MS); // there is no synchronous poll() in Node.js
    }
  }
}

module.exports = { current, logError, logWarning, patchConsole };
