// The life of the runtime: load the handler, then take invocations one by one and answer each.
//
// Settling an invocation is final: whatever a handler does afterwards changes nothing. Up to Node.js 22 a result given
// to the callback waits until the event loop is empty, and a handler that never answers has answered null by then.

'use strict';

const { contextConstants, makeContext, readInvocation } = require('./context.cjs');
const { RuntimeError, errorDocument } = require('./errors.cjs');
const logs = require('./logs.cjs');

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
const HIGH_WATER_MARK = Symbol.for('aws.lambda.runtime.handler.streaming.highWaterMark');
const RESPONSE_TOO_LARGE = 413;
const INVOKE_TIMEOUT = 410;
const EXIT_PLATFORM = 1;
const EXIT_UNSETTLED = 13; // what Node.js itself says of a top-level await that never settles
const EXIT_REJECTION = 128;
const EXIT_EXCEPTION = 129;
const FIRST_WITHOUT_CALLBACKS = 24;
const CALLBACKS_REMOVED =
  'ERROR: AWS Lambda has removed support for callback-based function handlers starting with Node.js 24. You need to ' +
  'modify this function to use a supported handler signature to use Node.js 24 or later. For more information see ' +
  'https://docs.aws.amazon.com/lambda/latest/dg/nodejs-handler.html.';
const NEVER_SETTLED =
  'The Lambda runtime client detected an unexpected Node.js exit code. This is most commonly caused by a Promise ' +
  'that was never settled. For more information, see https://nodejs.org/docs/latest/api/process.html#exit-codes';

let streams = null; // stream.cjs, which most functions do not need

class Runtime {
  constructor(api, environ) {
    this.api = api;
    this.handler = null;
    this.constants = contextConstants(environ);
    this.hasCallbacks = majorVersion(environ) < FIRST_WITHOUT_CALLBACKS;
    this.invocation = null;
    this.exitCode = null; // set once the process is to end, after what is being posted
    this.onInvocation = (...answer) => this.takeInvocation(...answer);
    this.onPosted = (...answer) => this.takePosted(...answer);
  }

  /** @throws {RuntimeError} Runtime.CallbackHandlerDeprecated */
  serve(handler) {
    const streamed = handler[STREAMING] === 'response';
    if (!this.hasCallbacks && !streamed && handler.length > 2) {
      throw new RuntimeError('Runtime.CallbackHandlerDeprecated', CALLBACKS_REMOVED);
    }
    if (streamed) loadStreams();
    this.handler = handler;
    this.invoke = streamed ? this.handleOnceStreaming : this.handleOnceNonStreaming;
    this.highWaterMark = handler[HIGH_WATER_MARK];
    this.api.next(this.onInvocation);
  }

  takeInvocation(status, headers, buffer, start, end) {
    if (status !== 200) return this.platformError('next', status, buffer.toString('utf8', start, end));
    const invocation = (this.invocation = readInvocation(headers));
    this.api.socket.unref();
    logs.current.id = invocation.id;
    logs.current.tenantId = invocation.tenantId;
    setTrace(headers['lambda-runtime-trace-id']);
    try {
      const event = JSON.parse(buffer.toString('utf8', start, end));
      this.invoke(event, headers, invocation);
    } catch (error) {
      this.fail(invocation, error);
    }
  }

  handleOnceNonStreaming(event, headers, invocation) {
    if (!this.hasCallbacks) {
      const result = this.handler(event, makeContext(headers, invocation, this.constants, null));
      if (isPromise(result)) this.follow(invocation, result);
      else this.complete(invocation, result);
      return;
    }
    const finish = finishers(this, invocation);
    const context = makeContext(headers, invocation, this.constants, finish.ofContext);
    const result = this.handler(event, context, finish.callback);
    if (isPromise(result)) this.follow(invocation, result);
  }

  handleOnceStreaming(event, headers, invocation) {
    const context = makeContext(headers, invocation, this.constants, this.hasCallbacks ? {} : null);
    const stream = new streams.ResponseStream(this.api, invocation, this.onPosted, this.highWaterMark);
    invocation.stream = stream;
    let open = 2; // the handler and the stream
    const closed = () => {
      open -= 1;
      if (open === 0) this.streamed(invocation);
    };
    stream.on('error', (error) => this.fail(invocation, error));
    stream.on('close', () => {
      if (stream.writableFinished) closed();
      else this.fail(invocation, new Error('Premature close'));
    });
    const result = this.handler(event, stream, context);
    if (!isPromise(result)) {
      throw new RuntimeError('Runtime.InvalidStreamingOperation', 'Streaming does not support non-async handlers.');
    }
    result.then(closed, (error) => this.fail(invocation, error));
  }

  follow(invocation, promise) {
    promise.then(
      (result) => this.complete(invocation, result),
      (error) => this.fail(invocation, error),
    );
  }

  complete(invocation, result) {
    if (invocation.settled) return;
    let body;
    try {
      body = JSON.stringify(result) ?? 'null';
    } catch {
      this.fail(invocation, new Error('Unable to stringify response body'));
      return;
    }
    invocation.settled = true;
    this.api.respond(invocation, 'application/json', body, this.onPosted, this.onInvocation);
  }

  fail(invocation, error) {
    if (invocation.settled) return;
    invocation.settled = true;
    logs.logError('Invoke Error', error);
    hintMissingSdk(error);
    this.postError(invocation, error, this.onInvocation);
  }

  /** To the caller; in a stream that has begun, as trailers. Then the next invocation, unless the process ends. */
  postError(invocation, error, onInvocation) {
    const document = errorDocument(error);
    if (invocation.stream === null || !invocation.stream.begun) {
      invocation.stream?.destroy();
      this.api.respondError(invocation, document, this.onPosted, onInvocation);
      return;
    }
    invocation.stream.abort(document);
    if (onInvocation !== undefined) this.api.next(onInvocation);
    else this.api.socket.ref();
  }

  /** The response is complete. The next invocation may have to wait, its caller does not. */
  streamed(invocation) {
    if (invocation.settled) return;
    invocation.settled = true;
    const next = () => this.api.next(this.onInvocation);
    if (this.hasCallbacks && invocation.waits) invocation.whenIdle = next;
    else next();
  }

  /** The event loop is empty. */
  idle() {
    const { invocation } = this;
    if (this.handler === null || invocation === null) {
      this.die('Init Error', new RuntimeError('Runtime.NodeJsExit', NEVER_SETTLED), EXIT_UNSETTLED);
    } else if (invocation.whenIdle !== null) {
      const act = invocation.whenIdle;
      invocation.whenIdle = null;
      act();
    } else if (!invocation.settled) {
      if (this.hasCallbacks && invocation.stream === null) this.complete(invocation, null);
      else this.die('Invoke Error', new RuntimeError('Runtime.NodeJsExit', NEVER_SETTLED), EXIT_UNSETTLED);
    }
  }

  takePosted(status, headers, buffer, start, end) {
    if (this.exitCode !== null) process.exit(this.exitCode);
    if (status < 300 || status === RESPONSE_TOO_LARGE) return; // the platform has told the caller
    const text = buffer.toString('utf8', start, end);
    if (status === INVOKE_TIMEOUT) logs.logWarning(`the answer came too late: ${text}`);
    else this.platformError('an answer', status, text);
  }

  platformError(what, status, text) {
    process.stderr.write(`The Runtime API answered ${what} with ${status}: ${text}\n`);
    process.exit(this.exitCode ?? EXIT_PLATFORM);
  }

  /** The connection is closed: the platform is gone, or what it says is not HTTP. */
  disconnected(error) {
    if (error !== undefined) process.stderr.write(`The Runtime API: ${error.message}\n`);
    process.exit(this.exitCode ?? (error === undefined ? 0 : EXIT_PLATFORM));
  }

  initFailed(error) {
    this.die(this.hasCallbacks ? 'Uncaught Exception' : 'Init Error', error, EXIT_EXCEPTION);
  }

  uncaught(error) {
    this.die('Uncaught Exception', error, EXIT_EXCEPTION);
  }

  rejected(reason, promise) {
    const error = new RuntimeError('Runtime.UnhandledPromiseRejection', text(reason));
    this.die('Unhandled Promise Rejection', Object.assign(error, { reason, promise }), EXIT_REJECTION);
  }

  /** Log, tell the platform if it waits for an answer, and end the process. */
  die(label, error, exitCode) {
    if (this.exitCode !== null) return;
    logs.logError(label, error);
    hintMissingSdk(error);
    this.exitCode = exitCode;
    const { invocation } = this;
    if (this.handler === null) {
      this.api.initError(errorDocument(error), this.onPosted);
    } else if (invocation !== null && !invocation.settled) {
      invocation.settled = true;
      this.postError(invocation, error, undefined);
    } else {
      process.exit(exitCode);
    }
  }
}

function loadStreams() {
  streams ??= require('./stream.cjs');
}

/** The callback and the methods of the context; the latter do not wait for an empty event loop. */
function finishers(runtime, invocation) {
  const finish = (error, result, waits) => {
    if (error !== undefined && error !== null) {
      runtime.fail(invocation, error);
    } else if (waits) {
      if (!invocation.settled) invocation.whenIdle = () => runtime.complete(invocation, result);
    } else {
      runtime.complete(invocation, result);
    }
  };
  return {
    callback: (error, result) => finish(error, result, invocation.waits),
    ofContext: {
      done: (error, result) => finish(error, result, false),
      succeed: (result) => finish(null, result, false),
      fail: (error) => runtime.fail(invocation, error),
    },
  };
}

/** For the X-Ray SDK, which reads it there. */
function setTrace(traceId) {
  if (traceId === undefined) delete process.env._X_AMZN_TRACE_ID;
  else process.env._X_AMZN_TRACE_ID = traceId;
}

function isPromise(value) {
  return value !== null && value !== undefined && typeof value.then === 'function';
}

function text(reason) {
  try {
    return reason?.toString();
  } catch {
    return undefined;
  }
}

/** Of the function's runtime, which is not always the version of the binary that serves it. */
function majorVersion(environ) {
  const named = /^AWS_Lambda_nodejs(\d+)/.exec(environ.AWS_EXECUTION_ENV ?? '');
  return parseInt(named === null ? process.versions.node : named[1], 10);
}

function hintMissingSdk(error) {
  const missing = /Cannot find (?:module|package) '((?:@aws-sdk\/|@smithy\/|aws-sdk)[^']*)'/.exec(error?.message ?? '');
  if (missing !== null) {
    logs.logWarning(`${missing[1]} is not part of this runtime; bundle the AWS SDK with the function or a layer.`);
  }
}

module.exports = { HIGH_WATER_MARK, Runtime, STREAMING, loadStreams };
