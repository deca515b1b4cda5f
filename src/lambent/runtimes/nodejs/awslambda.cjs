// The global `awslambda`, with which handlers ask for a response stream.

'use strict';

const { HIGH_WATER_MARK, STREAMING } = require('./runtime.cjs');

const INTEGRATION_TYPE = 'application/vnd.awslambda.http-integration-response';
const PRELUDE_END = '\0'.repeat(8);

class HttpResponseStream {
  /** Make `stream` an HTTP response: {statusCode, headers, cookies} travels before the body. */
  static from(stream, prelude) {
    stream.setContentType(INTEGRATION_TYPE);
    stream.prelude = JSON.stringify(prelude) + PRELUDE_END;
    return stream;
  }
}

function streamifyResponse(handler, options) {
  handler[STREAMING] = 'response';
  if (options?.highWaterMark !== undefined) handler[HIGH_WATER_MARK] = parseInt(options.highWaterMark, 10);
  return handler;
}

module.exports = { awslambda: { streamifyResponse, HttpResponseStream } };
