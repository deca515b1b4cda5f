// The trivial function of the benchmarks in Node.js.
export const handler = async (event) => event;
