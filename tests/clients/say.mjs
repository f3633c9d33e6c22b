// What a program has seen, one line each: compared between a bare server and the proxy.
import { createHash } from 'node:crypto';

function plain(value) {
  if (value instanceof Error) return { error: value.message };
  if (value instanceof Map) return [...value].map(plain);
  if (value instanceof Set) return [...value].map(plain);
  if (Buffer.isBuffer(value)) return value.length > 100 ? digest(value) : value.toString('latin1');
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'string' && value.length > 1000) return digest(Buffer.from(value));
  if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]));
  return value;
}

function digest(bytes) {
  return `${bytes.length} bytes ${createHash('sha1').update(bytes).digest('hex')}`;
}

export function say(what, value) {
  console.log(`${what}: ${JSON.stringify(plain(value))}`);
}

export const failure = (promise) => promise.then((value) => ({ unexpected: value }), (error) => error);
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
