// node-redis at its work. node main.mjs PORT OTHER_PORT PROTOCOL
import { createClient, defineScript } from 'redis';
import { failure, say, sleep } from '../say.mjs';

const [port, otherPort, RESP] = process.argv.slice(2).map(Number);
const scripts = {
  add: defineScript({
    SCRIPT: "return redis.call('incrby', KEYS[1], ARGV[1])",
    NUMBER_OF_KEYS: 1,
    parseCommand(parser, key, amount) {
      parser.pushKey(key);
      parser.push(String(amount));
    },
    transformReply: (reply) => reply,
  }),
};
const open = async (port, options = {}) => {
  const client = createClient({ socket: { host: '127.0.0.1', port }, RESP, scripts, ...options });
  client.on('error', () => {});
  return client.connect();
};
const client = await open(port, { name: 'worker' });
const other = await open(otherPort);

async function types() {
  say('set', await client.set('s', 'one', { expiration: { type: 'EX', value: 100 } }));
  say('get', [await client.get('s'), await client.get('s'), await client.get('missing')]);
  say('ttl', [await client.ttl('s'), await client.persist('s'), await client.ttl('s'), await client.ttl('missing')]);
  say('nx', [await client.set('s', 'two', { condition: 'NX' }), await client.set('n', '1', { condition: 'NX' })]);
  say('counters', [await client.incr('n'), await client.incrByFloat('n', 0.5), await client.get('n')]);
  say('many', [await client.mSet({ a: '1', b: '2' }), await client.mGet(['a', 'missing', 'b'])]);
  say('name', await client.clientGetName());
  say('hash', [await client.hSet('h', { f: 'v', g: 'w' }), await client.hGetAll('h'), await client.hGet('h', 'f'),
    await client.hmGet('h', ['f', 'none']), await client.hDel('h', 'f'), await client.hGetAll('h'), await client.hGetAll('missing')]);
  say('list', [await client.rPush('l', ['a', 'b', 'c']), await client.lRange('l', 0, -1), await client.lPop('l'), await client.lRange('l', 0, -1),
    await client.lPos('l', 'c'), await client.lLen('l')]);
  say('set', [await client.sAdd('t', ['x']), await client.sMembers('t'), await client.sIsMember('t', 'x'), await client.smIsMember('t', ['x', 'y'])]);
  say('sorted', [await client.zAdd('z', [{ score: 1.5, value: 'a' }, { score: 2, value: 'b' }]), await client.zRangeWithScores('z', 0, -1),
    await client.zScore('z', 'a'), await client.zIncrBy('z', 2, 'a'), await client.zRange('z', 0, -1), await client.zmScore('z', ['a', 'none'])]);
  say('stream', [await client.xAdd('x', '1-1', { f: 'v' }), await client.xRange('x', '-', '+'), await client.xLen('x')]);
  say('wrong type', [await failure(client.get('h')), await failure(client.lPush('s', 'x')), await failure(client.sendCommand(['NOSUCH', 'x'])),
    await failure(client.sendCommand(['GET']))]);
  say('types', [await client.type('h'), await client.exists(['h', 's', 'missing']), await client.del(['h', 'missing']), await client.type('h')]);
}

async function pipelines() {
  const replies = await Promise.all(Array.from({ length: 500 }, (_, i) =>
    i % 2 ? client.get(`p${i - 1}`) : client.set(`p${i}`, `value ${i}`)));
  say('pipeline', [replies.length, replies.slice(-4)]);
}

async function transactions() {
  say('multi', await client.multi().set('m', '1').incr('m').get('m').hSet('mh', 'a', '1').hGetAll('mh').exec());
  say('error inside', await failure(client.multi().set('m', 'text').incr('m').exec()));
  say('error before', await failure(client.multi().addCommand(['SET']).get('m').exec()));
  say('afterwards', await client.get('m'));
  for (const conflict of [false, true]) {
    const alone = await open(port);
    await alone.watch('m');
    await alone.get('m');
    if (conflict) await other.set('m', 'by another');
    say(`watch, conflict ${conflict}`, await failure(alone.multi().set('m', 'mine').exec()));
    await alone.close();
  }
  say('watched', await other.get('m'));
}

async function subscriptions() {
  const subscriber = await client.duplicate().connect();
  subscriber.on('error', () => {});
  const heard = [];
  const count = async (n) => { while (heard.length < n) await sleep(5); };
  await subscriber.subscribe('news', (message, channel) => heard.push([channel, message]));
  await subscriber.pSubscribe('sport.*', (message, channel) => heard.push(['pattern', channel, message]));
  await subscriber.sSubscribe('shard', (message, channel) => heard.push(['shard', channel, message]));
  say('receivers', [await other.publish('news', 'hello'), await client.publish('news', 'again'), await other.publish('none', 'lost')]);
  await count(2);
  say('pattern receivers', await other.publish('sport.chess', 'mate'));
  await count(3);
  say('shard receivers', await client.sPublish('shard', 'split'));
  await count(4);
  say('binary', await client.publish('news', 'é\r\n\0'));
  await count(5);
  say('numsub', await client.pubSubNumSub(['news', 'none']));
  say('heard', heard);
  if (RESP === 3) say('command while subscribed', await subscriber.set('during', 'subscription').then(() => subscriber.get('during')));
  else say('ping while subscribed', await subscriber.ping());
  await subscriber.unsubscribe('news');
  await subscriber.pUnsubscribe();
  await subscriber.sUnsubscribe();
  say('receivers after', await other.publish('news', 'nobody'));
  say('usable again', await subscriber.get('s'));
  await subscriber.close();
}

async function blocking() {
  const waiting = await client.duplicate().connect();
  const popped = waiting.blPop(['q1', 'q2'], 5);
  await sleep(50);
  await other.rPush('q2', 'job');
  say('blpop', await popped);
  say('timeout', await waiting.blPop('q1', 0.1));
  const read = waiting.xRead({ key: 'events', id: '$' }, { BLOCK: 5000 });
  await sleep(50);
  await other.xAdd('events', '5-5', { type: 'click' });
  say('xread', await read);
  await waiting.close();
}

async function lua() {
  await client.scriptFlush();
  say('script', [await client.add('counted', 3), await client.add('counted', 4)]);
  say('noscript', await failure(client.evalSha('0123456789012345678901234567890123456789', { keys: ['counted'] })));
  say('eval', await client.eval("return {KEYS[1], ARGV[1], 7, redis.call('get', KEYS[1]), false}", { keys: ['counted'], arguments: ['x'] }));
  say('script error', await failure(client.eval("return redis.error_reply('MINE of my own')")));
  const sha = await client.scriptLoad('return 5');
  say('load', [sha, await client.scriptExists([sha, 'f'.repeat(40)]), await client.evalSha(sha)]);
  say('multi with script', await client.multi().add('counted', 1).get('counted').exec());
}

async function scans() {
  const found = [];
  for await (const keys of client.scanIterator({ MATCH: 'p*', COUNT: 50 })) found.push(...keys);
  say('scan', [found.length, [...new Set(found)].sort().slice(0, 5)]);
  await client.hSet('big hash', Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`f${i}`, `${i}`])));
  let fields = 0;
  for await (const entries of client.hScanIterator('big hash')) fields += entries.length;
  say('hscan', fields);
}

async function big() {
  const value = Buffer.alloc(5_000_000, 'nearside ');
  say('big set', await client.set('big', value));
  say('big get', [await client.get('big'), await client.get('big'), await client.strLen('big')]);
  say('big read by another', await other.get('big'));
}

async function databases() {
  const third = await open(port, { database: 3 });
  say('database', [await third.set('s', 'of 3'), await third.get('s'), await client.get('s'), await third.dbSize()]);
  await third.select(0);
  say('selected', await third.get('s'));
  await third.close();
}

async function reconnects() {
  const victim = await open(port, { name: 'victim', database: 2, socket: { host: '127.0.0.1', port, reconnectStrategy: 20 } });
  const id = await victim.clientId();
  const ready = new Promise((resolve) => victim.once('ready', resolve));
  say('killed', await client.clientKill({ filter: 'ID', id: String(id) }));
  await ready;
  say('back', [await victim.clientGetName(), await victim.set('alive', 'yes'), await victim.get('alive'), (await victim.clientInfo()).db,
    (await victim.clientId()) !== id]);
  await victim.close();
}

// the client keeps a cache of its own: CLIENT TRACKING
async function clientCache() {
  if (RESP !== 3) return;
  const caching = await open(port, { clientSideCache: { ttl: 0, maxEntries: 100, evictPolicy: 'LRU' } });
  await other.set('tracked', 'first');
  say('cached', [await caching.get('tracked'), await caching.get('tracked')]);
  await other.set('tracked', 'second');
  let value;
  for (let i = 0; i < 300 && value !== 'second'; i++) { await sleep(10); value = await caching.get('tracked'); }
  say('invalidated', value);
  await caching.close();
}

for (const step of [types, pipelines, transactions, subscriptions, blocking, lua, scans, big, databases, reconnects, clientCache]) await step();
await client.close();
await other.close();
console.log('done');
