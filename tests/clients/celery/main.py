"""Celery with Redis as broker and results, its worker on the other side: python main.py PORT OTHER_PORT"""

import os
import subprocess
import sys
from pathlib import Path

from celery import chain, chord, group
from celery.exceptions import TimeoutError as NotInTime

os.environ["TASKS_PORT"] = sys.argv[1]
sys.path.insert(0, str(Path(__file__).parent))
import tasks

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool=threads", "--concurrency=3", "--loglevel=ERROR"],
    cwd=Path(__file__).parent, env={**os.environ, "TASKS_PORT": sys.argv[2]}, stdout=sys.stderr,
)
try:
    print("one:", tasks.add.delay(1, 2).get(timeout=40))
    print("many:", group(tasks.add.s(i, i) for i in range(20))().get(timeout=20))
    print("chain:", chain(tasks.add.s(1, 1), tasks.add.s(10), tasks.add.s(100))().get(timeout=20))
    print("chord:", chord((tasks.add.s(i, 1) for i in range(5)), tasks.total.s())().get(timeout=20))
    failed = tasks.broken.delay()
    print("broken:", repr(failed.get(timeout=20, propagate=False)), failed.state)
    flaky = tasks.flaky.delay()
    print("flaky:", flaky.get(timeout=20), flaky.state)
    print("countdown:", tasks.add.apply_async((3, 4), countdown=0.3).get(timeout=20))
    big = "nearside" * 100_000
    print("big:", tasks.echo.delay(big).get(timeout=20) == big)
    never = tasks.add.apply_async((1, 1), countdown=3600)
    try:
        never.get(timeout=0.3)
    except NotInTime:
        print("not yet:", never.state)
    never.revoke()
    answers = tasks.app.control.ping(timeout=3, limit=1)
    print("remote control:", [list(answer.values()) for answer in answers])
    forgotten = tasks.add.delay(5, 5)
    print("forgotten:", forgotten.get(timeout=20), forgotten.forget(), forgotten.state)
finally:
    worker.terminate()
    worker.wait(timeout=20)
print("done")
