"""Django's cache API and sessions on django-redis: python main.py PORT OTHER_PORT"""

import sys

import django
from django.conf import settings

settings.configure(
    CACHES={
        name: {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"redis://127.0.0.1:{port}/1", "KEY_PREFIX": "app"}
        for name, port in zip(("default", "other"), sys.argv[1:], strict=True)
    },
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    SECRET_KEY="of a test",
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache import cache, caches

other = caches["other"]


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except ValueError as error:
        return f"ValueError: {error}"


print("set:", cache.set("k", {"a": [1, None]}, timeout=60), cache.get("k"), cache.get("k"), cache.ttl("k"), cache.get("none", "default"))
print("add:", cache.add("k", 2), cache.add("new", 2), cache.get("new"), cache.set("k", 3, nx=True), cache.get("k"))
print("many:", cache.set_many({f"m{i}": i for i in range(5)}), cache.get_many(["m1", "none", "m4"]), cache.delete_many(["m1", "m2"]), cache.get_many(["m1", "m3"]))
print("numbers:", cache.set("n", 5), cache.incr("n"), cache.decr("n", 3), cache.get("n"), attempt(cache.incr, "none"))
print("expiry:", cache.expire("n", 10), cache.ttl("n"), cache.persist("n"), cache.ttl("n"), cache.touch("n", 20), cache.ttl("n"), cache.ttl("none"))
print("versions:", cache.set("v", "one", version=1), cache.incr_version("v"), cache.get("v"), cache.get("v", version=2))
print("get_or_set:", cache.get_or_set("made", lambda: "made once"), cache.get_or_set("made", lambda: "made twice"))
print("keys:", sorted(cache.keys("m*")), sorted(cache.iter_keys("m*")), cache.delete_pattern("m*"), cache.keys("m*"))
with cache.lock("lock", timeout=10):
    print("locked:", other.lock("lock", timeout=10, blocking_timeout=0.1).acquire())
print("free:", (lock := other.lock("lock", timeout=10)).acquire(), lock.release())
print("written by the other:", other.set("theirs", "seen"), other.get("theirs"), cache.get("theirs"))
big = "nearside" * 625_000
print("big:", cache.set("big", big), cache.get("big") == big, cache.get("big") == big, cache.delete("big"), cache.get("big"))

session = SessionStore()
session["visits"] = 1
session.save()
key = session.session_key
for _ in range(3):
    visit = SessionStore(key)
    visit["visits"] += 1
    visit.save()
print("session:", SessionStore(key)["visits"], SessionStore(key).exists(key), session.delete(), SessionStore(key).exists(key))
print("cleared:", cache.clear(), cache.get("k"), cache.keys("*"))
print("done")
