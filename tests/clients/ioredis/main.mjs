// ioredis at its work. node main.mjs PORT OTHER_PORT PROTOCOL
import { Redis } from 'ioredis';
import { failure, say, sleep } from '../say.mjs';

const [port, otherPort, protocol] = process.argv.slice(2).map(Number);
const open = (port, options = {}) => {
  const client = new Redis(port, '127.0.0.1', { protocol, retryStrategy: () => 20, ...options });
  client.on('error', () => {});
  return client;
};
const client = open(port, { connectionName: 'worker' });
const other = open(otherPort);

async function types() {
  say('set', [await client.set('s', 'one', 'EX', 100), await client.get('s'), await client.get('s'), await client.get('missing')]);
  say('ttl', [await client.ttl('s'), await client.pttl('missing'), await client.persist('s'), await client.ttl('s')]);
  say('nx', [await client.set('s', 'two', 'NX'), await client.setnx('n', 1), await client.incr('n'), await client.incrbyfloat('n', 0.5)]);
  say('many', [await client.mset({ a: 1, b: 2 }), await client.mget('a', 'missing', 'b')]);
  say('name', await client.client('GETNAME'));
  say('hash', [await client.hset('h', { f: 'v', g: 'w' }), await client.hgetall('h'), await client.hgetall('h'), await client.hget('h', 'f'),
    await client.hmget('h', 'f', 'none'), await client.hdel('h', 'f'), await client.hgetall('h'), await client.hgetall('missing')]);
  say('list', [await client.rpush('l', 'a', 'b', 'c'), await client.lrange('l', 0, -1), await client.lpop('l'), await client.lrange('l', 0, -1), await client.llen('l')]);
  say('set', [await client.sadd('t', 'x'), await client.smembers('t'), await client.sismember('t', 'x'), await client.smismember('t', 'x', 'y')]);
  say('sorted', [await client.zadd('z', 1.5, 'a', 2, 'b'), await client.zrange('z', 0, -1, 'WITHSCORES'), await client.zscore('z', 'a'),
    await client.zincrby('z', 2, 'a'), await client.zrevrange('z', 0, -1), await client.zmscore('z', 'a', 'none')]);
  say('stream', [await client.xadd('x', '1-1', 'f', 'v'), await client.xrange('x', '-', '+')]);
  say('wrong type', [await failure(client.get('h')), await failure(client.call('NOSUCH', 'x')), await failure(client.call('GET'))]);
  say('buffers', [await client.set(Buffer.from([0, 1, 255]), Buffer.from([13, 10, 0, 200])), await client.getBuffer(Buffer.from([0, 1, 255]))]);
}

async function pipelines() {
  const pipeline = client.pipeline();
  for (let i = 0; i < 250; i++) pipeline.set(`p${i}`, `value ${i}`).get(`p${i}`);
  const replies = await pipeline.lpush('s', 'x').hgetall('h').exec();
  say('pipeline', [replies.length, replies.slice(-4)]);
  const automatic = open(port, { enableAutoPipelining: true });
  say('automatic pipeline', await Promise.all(Array.from({ length: 100 }, (_, i) => automatic.get(`p${i}`))));
  await automatic.quit();
}

async function transactions() {
  say('multi', await client.multi().set('m', '1').incr('m').get('m').hset('mh', 'a', '1').hgetall('mh').exec());
  say('error inside', await client.multi().set('m', 'text').incr('m').get('m').exec());
  say('error before', await failure(client.multi().call('SET').get('m').exec()));
  await client.multi({ pipeline: false });
  say('by hand', [await client.set('m', 'queued'), await client.get('m'), await client.exec()]);
  await client.multi({ pipeline: false });
  say('discarded', [await client.set('m', 'never'), await client.discard(), await client.get('m')]);
  for (const conflict of [false, true]) {
    const alone = open(port);
    await alone.watch('m');
    await alone.get('m');
    if (conflict) await other.set('m', 'by another');
    say(`watch, conflict ${conflict}`, await alone.multi().set('m', 'mine').exec());
    await alone.quit();
  }
  say('watched', await other.get('m'));
}

async function subscriptions() {
  const subscriber = open(port);
  const heard = [];
  const count = async (n) => { while (heard.length < n) await sleep(5); };
  subscriber.on('message', (...message) => heard.push(message));
  subscriber.on('pmessage', (...message) => heard.push(message));
  subscriber.on('smessage', (...message) => heard.push(['shard', ...message]));
  say('subscribed', [await subscriber.subscribe('news', 'more'), await subscriber.psubscribe('sport.*'), await subscriber.ssubscribe('shard')]);
  say('receivers', [await other.publish('news', 'hello'), await client.publish('more', 'again'), await other.publish('none', 'lost')]);
  await count(2);
  say('pattern receivers', await other.publish('sport.chess', 'mate'));
  await count(3);
  say('shard receivers', await client.spublish('shard', 'split'));
  await count(4);
  say('heard', heard);
  say('numsub', [await client.pubsub('NUMSUB', 'news', 'none'), await client.pubsub('NUMPAT')]);
  say('get while subscribed', await failure(subscriber.get('s')));
  say('unsubscribed', [await subscriber.unsubscribe('news', 'more'), await subscriber.punsubscribe('sport.*'), await subscriber.sunsubscribe('shard')]);
  say('usable again', await subscriber.get('s'));
  // subscriptions are made again after a lost connection
  heard.length = 0;
  const survivor = open(port, { connectionName: 'survivor' });
  const id = await survivor.client('ID');
  survivor.on('message', (...message) => heard.push(message));
  await survivor.subscribe('news');
  say('killed', await client.client('KILL', 'ID', id));
  for (let i = 0; i < 500 && !heard.length; i++) { await client.publish('news', 'after'); await sleep(10); }
  say('heard after', heard[0]);
  survivor.disconnect();
  await subscriber.quit();
}

async function blocking() {
  const waiting = open(port);
  await waiting.ping();
  const popped = waiting.blpop('q1', 'q2', 5);
  await sleep(50);
  await other.rpush('q2', 'job');
  say('blpop', await popped);
  say('timeout', await waiting.blpop('q1', 0.1));
  const popMin = waiting.bzpopmin('scores', 5);
  await sleep(50);
  await other.zadd('scores', 1.5, 'low', 3, 'high');
  say('bzpopmin', await popMin);
  const read = waiting.xread('BLOCK', 5000, 'STREAMS', 'events', '$');
  await sleep(50);
  await other.xadd('events', '5-5', 'type', 'click');
  say('xread', await read);
  await waiting.quit();
}

async function lua() {
  await client.script('FLUSH');
  client.defineCommand('add', { numberOfKeys: 1, lua: "return redis.call('incrby', KEYS[1], ARGV[1])" });
  say('script', [await client.add('counted', 3), await client.add('counted', 4)]);
  say('scripts in a pipeline', await client.pipeline().add('counted', 1).add('counted', 1).get('counted').exec());
  await client.script('FLUSH');
  say('scripts in a transaction', await failure(client.multi().add('counted', 1).get('counted').exec()));
  say('noscript', await failure(client.evalsha('0'.repeat(40), 1, 'counted')));
  say('eval', await client.eval("return {KEYS[1], ARGV[1], 7, redis.call('get', KEYS[1])}", 1, 'counted', 'x'));
  say('script error', await failure(client.eval("return redis.error_reply('MINE of my own')", 0)));
}

async function scans() {
  let found = [];
  for await (const keys of client.scanStream({ match: 'p*', count: 50 })) found = found.concat(keys);
  say('scan', [new Set(found).size, [...new Set(found)].sort().slice(0, 5)]);
}

async function big() {
  const value = Buffer.alloc(5_000_000, 'nearside ');
  say('big set', await client.set('big', value));
  say('big get', [await client.getBuffer('big'), await client.getBuffer('big'), await other.getBuffer('big')]);
}

async function databases() {
  const third = open(port, { db: 3 });
  say('database', [await third.set('s', 'of 3'), await third.get('s'), await client.get('s'), await third.dbsize()]);
  say('selected', [await third.select(0), await third.get('s')]);
  await third.quit();
}

async function reconnects() {
  const victim = open(port, { connectionName: 'victim', db: 2 });
  const id = await victim.client('ID');
  const back = new Promise((resolve) => victim.once('close', () => victim.once('ready', resolve)));
  say('killed', await client.client('KILL', 'ID', id));
  await back;
  say('back', [await victim.client('GETNAME'), await victim.set('alive', 'yes'), await victim.get('alive'), (await victim.client('INFO')).match(/ db=\d+/)[0]]);
  // a command that waited is sent again
  await victim.select(0);
  const waitingId = await victim.client('ID');
  const popped = victim.blpop('revived', 5);
  await sleep(50);
  say('killed while it waits', await client.client('KILL', 'ID', waitingId));
  await other.rpush('revived', 'job');
  say('blpop after', await popped);
  victim.disconnect();
}

for (const step of [types, pipelines, transactions, subscriptions, blocking, lua, scans, big, databases, reconnects]) await step();
await client.quit();
await other.quit();
console.log('done');
