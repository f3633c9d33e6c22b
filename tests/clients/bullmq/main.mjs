// Queues, workers, retries, delays, priorities and flows of BullMQ. node main.mjs PORT OTHER_PORT
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import { failure, say, sleep } from '../say.mjs';

const [port, otherPort] = process.argv.slice(2).map(Number);
const at = (port) => ({ connection: { host: '127.0.0.1', port } });
const until = async (condition) => { while (!(await condition())) await sleep(10); };

const queue = new Queue('work', at(port));
const events = new QueueEvents('work', at(port));
await events.waitUntilReady();

const jobs = await queue.addBulk(Array.from({ length: 20 }, (_, n) => ({ name: 'square', data: { n } })));
const flaky = await queue.add('flaky', {}, { attempts: 3, backoff: { type: 'fixed', delay: 30 } });
const broken = await queue.add('broken', {});
const delayed = await queue.add('square', { n: 100 }, { delay: 300 });
const same = [await queue.add('square', { n: 7 }, { jobId: 'once' }), await queue.add('square', { n: 8 }, { jobId: 'once' })];
say('waiting', await queue.getJobCounts('waiting', 'delayed', 'completed', 'failed'));
say('same id', [same[0].id, same[1].id, (await queue.getJob('once')).data]);

const handle = async (job) => {
  if (job.name === 'broken') throw new Error('it is broken');
  if (job.name === 'flaky' && job.attemptsMade < 2) throw new Error(`try ${job.attemptsMade}`);
  await job.updateProgress(50);
  return job.name === 'square' ? job.data.n ** 2 : 'at last';
};
const workers = [new Worker('work', handle, { ...at(otherPort), concurrency: 3 }), new Worker('work', handle, at(port))];
say('results', await Promise.all(jobs.map((job) => job.waitUntilFinished(events, 15000))));
say('others', [await flaky.waitUntilFinished(events, 15000), await failure(broken.waitUntilFinished(events, 15000)),
  await delayed.waitUntilFinished(events, 15000)]);
await until(async () => (await queue.getCompletedCount()) === 23);
say('finished', [await queue.getJobCounts('waiting', 'active', 'delayed', 'completed', 'failed'), (await queue.getJob(flaky.id)).attemptsMade]);
const [failed] = await queue.getFailed();
say('failed', [failed.name, failed.failedReason, await failed.getState()]);
await failed.remove();

await queue.pause();
const held = await queue.add('square', { n: 3 });
await sleep(100);
say('paused', [await queue.isPaused(), await held.getState()]);
await queue.resume();
say('resumed', await held.waitUntilFinished(events, 15000));

const flow = new FlowProducer(at(otherPort));
const sum = new Worker('sums', async (job) => Object.values(await job.getChildrenValues()).reduce((a, b) => a + b, 0), at(port));
const sums = new QueueEvents('sums', at(port));
await sums.waitUntilReady();
const tree = await flow.add({ name: 'sum', queueName: 'sums', children: [1, 2, 3].map((n) => ({ name: 'square', queueName: 'work', data: { n } })) });
say('flow', await tree.job.waitUntilFinished(sums, 15000));

await queue.upsertJobScheduler('tick', { every: 100 }, { name: 'square', data: { n: 9 } });
await until(async () => (await queue.getCompletedCount()) >= 30);
say('scheduler', [(await queue.getJobSchedulers()).map(({ key, every }) => ({ key, every })), await queue.removeJobScheduler('tick')]);

await Promise.all([...workers, sum, events, sums, flow].map((part) => part.close()));
await queue.obliterate({ force: true });
say('obliterated', await queue.getJobCounts('waiting', 'completed'));
await queue.close();
console.log('done');
