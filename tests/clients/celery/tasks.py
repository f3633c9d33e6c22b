"""The application: which side it is on says TASKS_PORT."""

import os

from celery import Celery

url = f"redis://127.0.0.1:{os.environ['TASKS_PORT']}/0"
app = Celery("tasks", broker=url, backend=url)
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_enable_remote_control = True
tries = []


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def echo(value):
    return value


@app.task
def broken():
    raise ValueError("it is broken")


@app.task(bind=True, max_retries=3)
def flaky(self):
    tries.append(1)
    if len(tries) < 3:
        raise self.retry(countdown=0.05)
    return "at last"
