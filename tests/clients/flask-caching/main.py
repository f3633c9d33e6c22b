"""Flask-Caching in two processes' worth of applications: python main.py PORT OTHER_PORT"""

import sys

from flask import Flask, request
from flask_caching import Cache

calls = 0


def application(port):
    app = Flask(__name__)
    cache = Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_PORT": int(port), "CACHE_REDIS_HOST": "127.0.0.1", "CACHE_DEFAULT_TIMEOUT": 60})

    @app.get("/page")
    @cache.cached(query_string=True)
    def page():
        global calls
        calls += 1
        return f"page {request.args.get('n')}, call {calls}"

    @cache.memoize(60)
    def double(n):
        global calls
        calls += 1
        return {"n": n * 2, "call": calls}

    return app, cache, double


here, cache, double = application(sys.argv[1])
there, other_cache, other_double = application(sys.argv[2])
web, other_web = here.test_client(), there.test_client()

print("pages:", [client.get(f"/page?n={n}").text for n in (1, 2, 1) for client in (web, other_web)])
with here.app_context():
    print("memoized:", double(1), double(1), double(2))
    cache.delete_memoized(double, 1)
    print("one forgotten:", double(1), double(2))
    cache.delete_memoized(double)
    print("all forgotten:", double(1), double(2))
    print("set:", cache.set("k", {"a": [1, None]}), cache.get("k"), cache.has("k"), cache.add("k", 2), cache.get("none"))
    print("many:", sorted(cache.set_many({"x": 1, "y": 2}) or []), cache.get_many("x", "none", "y"), cache.get_dict("x", "y"))
    print("deleted:", cache.delete("x"), cache.get("x"), cache.delete_many("y", "k"), cache.get("k"))
    print("inc:", cache.cache.inc("count"), cache.cache.inc("count", 5), cache.cache.dec("count"))
    print("cleared:", cache.clear(), cache.get("count"))
print("pages afterwards:", [web.get(f"/page?n={n}").text for n in (1, 2, 1)])
print("done")
