// Finds the handler that _HANDLER names: `index.handler`, `src/app.main.handler`, CommonJS or ECMAScript module.

'use strict';

const fs = require('fs');
const { createRequire } = require('module');
const path = require('path');
const { RuntimeError } = require('./errors.cjs');

const PARENT = '/var/runtime/index.mjs'; // whom a "Require stack" names last; as on AWS it is not in the sandbox's tree

/**
 * @returns {Promise<Function>}
 * @throws {RuntimeError} Runtime.MalformedHandlerName, .ImportModuleError, .UserCodeSyntaxError, .HandlerNotFound;
 *   and whatever the module itself throws
 */
async function loadHandler(taskRoot, name) {
  const { folder, module, trail } = splitName(name);
  let exported;
  try {
    exported = await loadModule(taskRoot, folder, module);
  } catch (error) {
    if (error instanceof SyntaxError) throw new RuntimeError('Runtime.UserCodeSyntaxError', String(error));
    if (error?.code === 'MODULE_NOT_FOUND') throw new RuntimeError('Runtime.ImportModuleError', String(error));
    throw error;
  }
  let handler = exported;
  for (const step of trail) handler = handler?.[step];
  if (handler === undefined || handler === null) {
    throw new RuntimeError('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  }
  if (typeof handler !== 'function') throw new RuntimeError('Runtime.HandlerNotFound', `${name} is not a function`);
  return handler;
}

function splitName(name) {
  if (name.includes('..')) {
    throw new RuntimeError(
      'Runtime.MalformedHandlerName',
      `'${name}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`,
    );
  }
  const base = path.basename(name);
  const dot = base.indexOf('.');
  if (dot < 0) throw new RuntimeError('Runtime.MalformedHandlerName', 'Bad handler');
  return {
    folder: name.slice(0, name.lastIndexOf(base)),
    module: base.slice(0, dot),
    trail: base.slice(dot + 1).split('.'),
  };
}

function loadModule(taskRoot, folder, module) {
  const stem = path.resolve(taskRoot, folder, module);
  const require = createRequire(PARENT);
  if (isFile(stem)) return require(stem);
  const js = stem + '.js';
  if (isFile(js)) return isModuleFolder(path.dirname(js)) ? importFile(js) : require(js);
  if (isFile(stem + '.mjs')) return importFile(stem + '.mjs');
  if (isFile(stem + '.cjs')) return require(stem + '.cjs');
  if (fs.statSync(stem, { throwIfNoEntry: false }) !== undefined) return require(stem); // a folder with an index
  // A package of NODE_PATH (a layer), or nothing: Node.js decides.
  return require(require.resolve(module, { paths: [path.resolve(taskRoot, folder), taskRoot] }));
}

function importFile(file) {
  return import(require('url').pathToFileURL(file).href);
}

/** Whether the nearest package.json says that .js files are ECMAScript modules. */
function isModuleFolder(folder) {
  for (let at = folder; path.basename(at) !== 'node_modules'; at = path.dirname(at)) {
    const file = path.join(at, 'package.json');
    if (isFile(file)) {
      try {
        return JSON.parse(fs.readFileSync(file, 'utf8')).type === 'module';
      } catch {
        return false; // Node.js itself will say what is wrong with it
      }
    }
    if (at === path.dirname(at)) break;
  }
  return false;
}

function isFile(file) {
  return fs.statSync(file, { throwIfNoEntry: false })?.isFile() === true;
}

module.exports = { loadHandler };
