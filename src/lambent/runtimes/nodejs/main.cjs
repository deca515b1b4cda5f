// Lambda's Node.js runtime: `node main.cjs`, with everything in the environment, or `node main.cjs --parked FD`, which
// waits on a socket for its environment (parked.cjs). Speaks the HTTP Runtime API (api.cjs); writes no file.

'use strict';

const fs = require('fs');
const Module = require('module');

const own = new Map(); // our modules by their file
let hidden = false; // whether `require` has forgotten them

const { RuntimeApi } = load('./api.cjs');
const { awslambda } = load('./awslambda.cjs');
const { loadHandler } = load('./handler.cjs');
const logs = load('./logs.cjs');
const { Runtime } = load('./runtime.cjs');

const ENTRY = '/var/runtime/index.mjs'; // what a function sees as process.argv[1], as on AWS

function main() {
  const parked = process.argv[2] === '--parked' ? parseInt(process.argv[3], 10) : -1;
  if (parked < 0) return start(process.env.LAMBDA_TASK_ROOT || process.cwd());
  const { become, waitForOrder } = load('./parked.cjs');
  return waitForOrder(parked).then((order) => {
    if (order === null) process.exit(0);
    become(order);
    start(order.task_root);
  });
}

function start(taskRoot) {
  hideOurselves();
  logs.patchConsole(process.env);
  globalThis.awslambda = awslambda;
  const api = new RuntimeApi(process.env.AWS_LAMBDA_RUNTIME_API, (error) => runtime.disconnected(error));
  const runtime = new Runtime(api, process.env);
  process.on('beforeExit', () => runtime.idle());
  process.on('uncaughtException', (error) => runtime.uncaught(error));
  process.on('unhandledRejection', (reason, promise) => runtime.rejected(reason, promise));
  loadHandler(taskRoot, process.env._HANDLER ?? '')
    .then((handler) => runtime.serve(handler))
    .catch((error) => runtime.initFailed(error));
}

/** `require` for our own files, without its search: a millisecond less of boot. */
function load(name) {
  if (!name.startsWith('./')) return require(name);
  const file = __dirname + name.slice(1);
  let module = own.get(file);
  if (module === undefined) {
    module = new Module(file);
    own.set(file, module);
    if (!hidden) require.cache[file] = module; // for a Node.js that does not ask module.require
    module.filename = file;
    module.require = load;
    module._compile(fs.readFileSync(file, 'utf8'), file);
  }
  return module.exports;
}

/** A function sees neither our arguments nor our modules. */
function hideOurselves() {
  process.argv.splice(1, Infinity, ENTRY);
  process.mainModule = undefined;
  for (const name of Object.keys(require.cache)) delete require.cache[name];
  hidden = true;
}

main();
