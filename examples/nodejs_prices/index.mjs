// Prices with tax: an ES module of Node.js. The counter lives as long as the environment.
let count = 0;

export const handler = async (event) => {
  count += 1;
  return { gross: Math.round(event.net * 119) / 100, node: process.version, count };
};
