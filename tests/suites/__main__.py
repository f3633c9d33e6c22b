import argparse, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from processes import Server, Proxy
from redis_suite import RedisSuite, OPTIONS

p = argparse.ArgumentParser()
p.add_argument("--source", required=True)
p.add_argument("--jobs", type=int, default=2)
p.add_argument("--side", default="both")
p.add_argument("--out", type=Path, required=True)
p.add_argument("units", nargs="*")
a = p.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
suite = RedisSuite(a.source)
def one(unit, side):
    folder = Path(tempfile.mkdtemp())
    server = Server(folder, options=OPTIONS)
    proxy = None
    port = server.port
    log = a.out / f"{unit.replace('/', '.')}.{side}.log"
    if side == "through":
        proxy = Proxy(folder, server.port)
        port = proxy.port
    t = time.time()
    try:
        r = suite.run(unit, port, log)
        if proxy:
            (a.out / f"{unit.replace('/', '.')}.proxy.log").write_text(proxy.read_log())
    finally:
        if proxy: proxy.kill()
        server.kill()
    return r, time.time() - t
def both(unit):
    sides = ["bare", "through"] if a.side == "both" else [a.side]
    res = {s: one(unit, s) for s in sides}
    print(unit, *(f"{s}: {sum(r.passed.values())} ok {len(r.failed)} failed {t:.0f}s" for s, (r, t) in res.items()))
    if len(res) == 2:
        for n in res["through"][0].lacks(res["bare"][0]): print("   LACKS", n)
    else:
        for n in list(res.values())[0][0].failed: print("   FAILED", n)
    sys.stdout.flush()
with ThreadPoolExecutor(a.jobs) as ex:
    list(ex.map(both, a.units or suite.units()))
