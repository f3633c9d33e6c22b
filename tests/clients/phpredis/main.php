<?php
// phpredis at its work. php main.php PORT OTHER_PORT
ob_start(); // sessions refuse to begin once something was printed
[, $port, $other_port] = $argv;

function say(string $what, mixed $value): void
{
    echo $what, ': ', json_encode(plain($value), JSON_PARTIAL_OUTPUT_ON_ERROR), "\n";
}

function plain(mixed $value): mixed
{
    if (is_array($value)) return array_map('plain', $value);
    return is_string($value) && strlen($value) > 1000 ? strlen($value) . ' bytes ' . sha1($value) : $value;
}

function open(int|string $port): Redis
{
    $client = new Redis();
    $client->connect('127.0.0.1', (int) $port, 5);
    return $client;
}

function failure(Redis $client, callable $work): mixed
{
    $client->clearLastError();
    try {
        return [$work(), $client->getLastError()];
    } catch (RedisException $e) {
        return preg_replace('/:\d+$/', '', $e->getMessage());
    }
}

$client = open($port);
$other = open($other_port);

say('set', [$client->setex('s', 100, 'one'), $client->get('s'), $client->get('s'), $client->get('missing')]);
say('ttl', [$client->ttl('s'), $client->persist('s'), $client->ttl('s'), $client->ttl('missing')]);
say('nx', [$client->set('s', 'two', ['nx', 'ex' => 10]), $client->setnx('n', '1'), $client->incr('n'), $client->incrByFloat('n', 0.5)]);
say('many', [$client->mset(['a' => '1', 'b' => '2']), $client->mget(['a', 'missing', 'b'])]);
say('hash', [$client->hMSet('h', ['f' => 'v', 'g' => 'w']), $client->hGetAll('h'), $client->hGetAll('h'), $client->hGet('h', 'f'), $client->hMGet('h', ['f', 'none']),
    $client->hDel('h', 'f'), $client->hGetAll('h'), $client->hGetAll('missing')]);
say('list', [$client->rPush('l', 'a', 'b', 'c'), $client->lRange('l', 0, -1), $client->lPop('l'), $client->lRange('l', 0, -1), $client->lLen('l')]);
say('set', [$client->sAdd('t', 'x'), $client->sMembers('t'), $client->sIsMember('t', 'x'), $client->sMisMember('t', 'x', 'y')]);
say('sorted', [$client->zAdd('z', 1.5, 'a', 2, 'b'), $client->zRange('z', 0, -1, true), $client->zScore('z', 'a'), $client->zIncrBy('z', 2, 'a'), $client->zRange('z', 0, -1)]);
say('stream', [$client->xAdd('x', '1-1', ['f' => 'v']), $client->xRange('x', '-', '+')]);
say('wrong type', [failure($client, fn () => $client->get('h')), failure($client, fn () => $client->rawCommand('NOSUCH', 'x')), failure($client, fn () => $client->rawCommand('GET'))]);

$client->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_PHP);
say('objects', [$client->set('object', ['a' => [1, 2.5, null]]), $client->get('object'), $client->get('object')]);
$client->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_NONE);

$pipeline = $client->multi(Redis::PIPELINE);
for ($i = 0; $i < 250; $i++) $pipeline->set("p$i", "value $i")->get("p$i");
$replies = $pipeline->exec();
say('pipeline', [count($replies), array_slice($replies, -4)]);

say('multi', $client->multi()->set('m', '1')->incr('m')->get('m')->hSet('mh', 'a', '1')->hGetAll('mh')->exec());
say('error inside', $client->multi()->set('m', 'text')->incr('m')->get('m')->exec());
say('error before', failure($client, function () use ($client) { $client->multi(); $client->rawCommand('SET'); return $client->exec(); }));
foreach ([false, true] as $conflict) {
    $alone = open($port);
    $alone->watch('m');
    $alone->get('m');
    if ($conflict) $other->set('m', 'by another');
    say('watch, conflict ' . json_encode($conflict), $alone->multi()->set('m', 'mine')->exec());
    $alone->close();
}
say('watched', $client->get('m'));

say('evalsha', failure($client, fn () => $client->evalSha(str_repeat('0', 40), ['counted'], 1)));
say('eval', [$client->eval("return redis.call('incrby', KEYS[1], ARGV[1])", ['counted', 3], 1), $client->get('counted')]);
$sha = $client->script('load', "return {redis.call('incr', KEYS[1]), 'x', false}");
say('load', [$sha, $client->script('exists', $sha), $client->evalSha($sha, ['counted'], 1), $client->get('counted')]);

$found = [];
$client->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
for ($cursor = null; $keys = $client->scan($cursor, 'p*', 100);) $found = array_merge($found, $keys);
$found = array_unique($found);
sort($found);
say('scan', [count($found), array_slice($found, 0, 5)]);

$big = str_repeat('nearside', 625_000);
say('big', [$client->set('big', $big), $client->get('big'), $client->get('big'), $other->get('big')]);

say('database', [$client->select(3), $client->set('s', 'of 3'), $client->get('s'), $other->get('s'), $client->select(0), $client->get('s')]);

// a child pushes and publishes while the parent waits
if (!($child = pcntl_fork())) {
    $pusher = open($other_port);
    usleep(100_000);
    $pusher->rPush('queue', 'job');
    while (!$pusher->publish('news', 'hello')) usleep(10_000);
    while (!$pusher->publish('sport.chess', 'mate')) usleep(10_000);
    posix_kill(getmypid(), SIGKILL);
}
$waiting = open($port);
say('blpop', [$waiting->blPop(['none', 'queue'], 5), $waiting->blPop('queue', 1)]);
// this version of phpredis leaves its subscriber's loop only by a timeout
$waiting->setOption(Redis::OPT_READ_TIMEOUT, 1);
$heard = fn ($redis, ...$message) => say('message', $message);
say('subscriber ends', failure($waiting, fn () => $waiting->subscribe(['news'], $heard)));
$waiting = open($port);
$waiting->setOption(Redis::OPT_READ_TIMEOUT, 1);
say('pattern subscriber ends', failure($waiting, fn () => $waiting->psubscribe(['sport.*'], $heard)));
pcntl_waitpid($child, $status);

// phpredis connects again by itself
$id = $client->client('id');
$client->select(2);
$client->set('here', 'db 2');
say('killed', $other_port === $port ? $other->rawCommand('CLIENT', 'KILL', 'ID', $id) : open($port)->rawCommand('CLIENT', 'KILL', 'ID', $id));
say('back', [$client->get('here'), $client->client('id') !== $id]);

// sessions, the most common use of it
ini_set('session.save_handler', 'redis');
ini_set('session.save_path', "tcp://127.0.0.1:$port");
ini_set('session.use_cookies', '0');
ini_set('session.cache_limiter', '');
ini_set('redis.session.locking_enabled', '1');
foreach (range(1, 3) as $visit) {
    session_id('visitor');
    session_start();
    $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
    say('visits', $_SESSION['visits']);
    session_write_close();
}
ob_end_flush();
echo "done\n";
