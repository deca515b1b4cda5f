// Errors as Lambda shows them: to the caller (`trace`), in a text log (`stack`), in a JSON log (`stackTrace`), and to
// X-Ray; and the errors that the runtime itself reports.

'use strict';

const { types } = require('util');

const UNREADABLE = {
  errorType: 'handled',
  errorMessage:
    'callback called with Error argument, but there was a problem while retrieving one or more of its message, ' +
    'name, and stack',
};

/** An error whose name is one of Lambda's own types, such as Runtime.ImportModuleError. */
class RuntimeError extends Error {
  constructor(name, message) {
    super(message);
    Object.defineProperty(this, 'name', { value: name, configurable: true, writable: true });
    // The stack was written with the name of the class.
    this.stack = this.stack.replace(/^Error/, name);
  }
}

/** Errors of other realms (vm, workers) and of libraries which only look like errors count as errors. */
function isError(value) {
  if (types.isNativeError(value)) return true;
  return (
    typeof value === 'object' &&
    value !== null &&
    typeof value.name === 'string' &&
    typeof value.message === 'string' &&
    typeof value.stack === 'string'
  );
}

function describe(error) {
  try {
    if (!isError(error)) return { errorType: typeof error, errorMessage: error.toString(), stack: [] };
    const stack = typeof error.stack === 'string' ? error.stack.split('\n') : [];
    return { errorType: String(error.name), errorMessage: String(error.message), stack };
  } catch {
    return { ...UNREADABLE, stack: [] };
  }
}

/** What the caller gets, and what travels in headers: {type, body, cause?}. */
function errorDocument(error) {
  const { errorType, errorMessage, stack } = describe(error);
  return {
    type: headerText(errorType) || 'Error',
    body: JSON.stringify({ errorType, errorMessage, trace: stack }),
    cause: xrayCause(errorType, errorMessage, stack),
  };
}

/** The error as one line of JSON for a text log, with whatever else it carries (`code`, `$metadata` ...). */
function errorLine(error) {
  const { errorType, errorMessage, stack } = describe(error);
  if (!isError(error)) return JSON.stringify({ errorType, errorMessage, trace: stack });
  try {
    return JSON.stringify({ errorType, errorMessage, code: error.code, ...error, stack }, nestedErrors('stack'));
  } catch {
    return JSON.stringify({ errorType, errorMessage, stack });
  }
}

/** A replacer for JSON.stringify that shows errors, which have no enumerable properties of their own. */
function nestedErrors(stackName) {
  return (_key, value) => {
    if (!(value instanceof Error) && !types.isNativeError(value)) return value;
    const { errorType, errorMessage, stack } = describe(value);
    return { errorType, errorMessage, [stackName]: stack, ...value };
  };
}

function xrayCause(type, message, lines) {
  const stack = [];
  for (const line of lines) {
    const match = /^\s*at (?:(.*) \()?(.*?):(\d+)(?::\d+)?\)?$/.exec(line);
    if (match !== null) stack.push({ path: match[2], line: +match[3], label: match[1] ?? 'anonymous' });
  }
  const paths = [...new Set(stack.map((frame) => frame.path))];
  const { LAMBDA_TASK_ROOT: folder } = process.env; // X-Ray wants a working directory; a real one may be gone
  return headerText(JSON.stringify({ working_directory: folder, exceptions: [{ type, message, stack }], paths }));
}

/** A header value is printable ASCII; in JSON, \u escapes say the same. */
function headerText(text) {
  return text.replace(/[^\x20-\x7e]/g, (unit) => '\\u' + unit.charCodeAt(0).toString(16).padStart(4, '0'));
}

module.exports = { RuntimeError, describe, errorDocument, errorLine, isError, nestedErrors };
