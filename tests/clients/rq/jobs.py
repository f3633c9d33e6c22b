"""What the workers of main.py do."""

from rq import get_current_job
from rq.job import Job


def square(n):
    return n * n


def total(*ids):
    job = get_current_job()
    return sum(Job.fetch(id, connection=job.connection).return_value() for id in ids)


def broken():
    raise ValueError("it is broken")


def flaky():
    job = get_current_job()
    if job.connection.incr("tries") < 3:
        raise ValueError("not yet")
    return "at last"
