"""rq: jobs, their results, retries, dependencies and the scheduler's registry: python main.py PORT OTHER_PORT"""

import sys
from datetime import timedelta
from pathlib import Path

from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker
from rq.job import Job

sys.path.insert(0, str(Path(__file__).parent))
import jobs

here, there = (Redis(port=int(port)) for port in sys.argv[1:])


def work(queue_names=("default",), worker=SimpleWorker):
    """A worker on the other side, until there is nothing left to do."""
    worker([Queue(name, connection=there) for name in queue_names], connection=there).work(burst=True, logging_level="ERROR")


queue = Queue(connection=here)
added = [queue.enqueue(jobs.square, n) for n in range(10)]
last = queue.enqueue(jobs.total, *[job.id for job in added], depends_on=added)
broken = queue.enqueue(jobs.broken)
flaky = queue.enqueue(jobs.flaky, retry=Retry(max=3))
later = queue.enqueue_in(timedelta(hours=1), jobs.square, 99)
print("queued:", len(queue), queue.started_job_registry.count, queue.scheduled_job_registry.count, queue.deferred_job_registry.count)
print("states:", [job.get_status(refresh=True).value for job in (added[0], last, later)])
work()
print("results:", [job.return_value(refresh=True) for job in added], last.return_value(refresh=True))
print("broken:", broken.get_status(refresh=True).value, "it is broken" in broken.latest_result().exc_string, queue.failed_job_registry.count)
print("flaky:", flaky.return_value(refresh=True), flaky.get_status(refresh=True).value, len(flaky.results()))
print("registries:", len(queue), queue.finished_job_registry.count, queue.failed_job_registry.count, queue.scheduled_job_registry.count)
print("fetched:", Job.fetch(added[3].id, connection=there).args, Job.exists("none", connection=there), sorted(q.name for q in Queue.all(connection=there)))
forked = Queue("forked", connection=here).enqueue(jobs.square, 12)
work(["forked"], Worker)
print("in a process of its own:", forked.return_value(refresh=True), forked.get_status(refresh=True).value)
print("requeued:", queue.failed_job_registry.requeue(broken.id).get_status().value, len(queue))
later.cancel()
print("cancelled:", later.get_status(refresh=True).value, queue.scheduled_job_registry.count, queue.empty(), len(queue), Worker.count(connection=there))
print("done")
