// What the headers of an invocation say, and the context object that a handler gets.

'use strict';

/** The invocation that a `next` answer describes. `attempt` must be echoed when it is answered. */
function readInvocation(headers) {
  return {
    id: headers['lambda-runtime-aws-request-id'],
    attempt: headers['lambda-runtime-invocation-id'],
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    settled: false,
    waits: true, // callbackWaitsForEmptyEventLoop
    whenIdle: null, // what to do when the event loop is empty
    stream: null,
  };
}

/**
 * @param {object | null} finish the methods done, succeed and fail; {} for a stream; null from Node.js 24 on, which
 *   has no callbacks
 * @throws {Error} when the client context or the identity is not JSON
 */
function makeContext(headers, invocation, constants, finish) {
  const deadlineMs = +headers['lambda-runtime-deadline-ms'];
  const context = {
    functionVersion: constants.functionVersion,
    functionName: constants.functionName,
    memoryLimitInMB: constants.memoryLimitInMB,
    logGroupName: constants.logGroupName,
    logStreamName: constants.logStreamName,
    clientContext: parseHeader(headers, 'lambda-runtime-client-context', 'ClientContext'),
    identity: parseHeader(headers, 'lambda-runtime-cognito-identity', 'CognitoIdentity'),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: invocation.id,
    tenantId: invocation.tenantId,
    getRemainingTimeInMillis: () => deadlineMs - Date.now(),
  };
  if (finish === null) return context;
  Object.defineProperty(context, 'callbackWaitsForEmptyEventLoop', {
    enumerable: true,
    configurable: true,
    get: () => invocation.waits,
    set: (value) => {
      invocation.waits = Boolean(value);
    },
  });
  return Object.assign(context, finish);
}

/** What does not change from one invocation to the next. */
function contextConstants(environ) {
  return {
    functionVersion: environ.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: environ.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: environ.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: environ.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: environ.AWS_LAMBDA_LOG_STREAM_NAME,
  };
}

function parseHeader(headers, name, meaning) {
  const text = headers[name];
  if (text === undefined || text === '') return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`Cannot parse ${meaning} as json: ${error}`);
  }
}

module.exports = { contextConstants, makeContext, readInvocation };
