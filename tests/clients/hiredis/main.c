/* hiredis, synchronous and asynchronous on libevent, at its work: main PORT OTHER_PORT */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <hiredis/adapters/libevent.h>

static redisContext *client, *other;

static void show(const redisReply *reply)
{
    if (!reply) { printf("(no reply)"); return; }
    switch (reply->type) {
    case REDIS_REPLY_INTEGER: printf("%lld", reply->integer); break;
    case REDIS_REPLY_NIL: printf("nil"); break;
    case REDIS_REPLY_ERROR: printf("error %s", reply->str); break;
    case REDIS_REPLY_STATUS: printf("status %s", reply->str); break;
    case REDIS_REPLY_STRING:
        if (reply->len > 1000) printf("%zu bytes, %c to %c", (size_t)reply->len, reply->str[0], reply->str[reply->len - 1]);
        else printf("\"%.*s\"", (int)reply->len, reply->str);
        break;
    default:
        printf("[");
        for (size_t i = 0; i < reply->elements; i++) { if (i) printf(", "); show(reply->element[i]); }
        printf("]");
    }
}

static void line(const char *what, redisReply *reply)
{
    printf("%s: ", what);
    show(reply);
    printf("\n");
    if (reply) freeReplyObject(reply);
}

#define SAY(...) line(#__VA_ARGS__, redisCommand(client, __VA_ARGS__))
#define OTHER(...) line("other " #__VA_ARGS__, redisCommand(other, __VA_ARGS__))

static redisContext *open_at(int port)
{
    redisContext *context = redisConnect("127.0.0.1", port);
    if (!context || context->err) { fprintf(stderr, "%s\n", context ? context->errstr : "no memory"); exit(1); }
    return context;
}

static void types(void)
{
    SAY("SET s one EX 100"); SAY("GET s"); SAY("GET s"); SAY("TTL s"); SAY("GET missing");
    SAY("HSET h f v g w"); SAY("HGETALL h"); SAY("HGET h f"); SAY("HDEL h f"); SAY("HGETALL h");
    SAY("RPUSH l a b c"); SAY("LRANGE l 0 -1"); SAY("LPOP l"); SAY("LRANGE l 0 -1");
    SAY("SADD t x"); SAY("SMEMBERS t"); SAY("SISMEMBER t x");
    SAY("ZADD z 1.5 a 2 b"); SAY("ZRANGE z 0 -1 WITHSCORES"); SAY("ZINCRBY z 2 a"); SAY("ZRANGE z 0 -1");
    SAY("GET h"); SAY("NOSUCH x"); SAY("GET"); SAY("SET %b %b", "k\0y", (size_t)3, "v\r\nw", (size_t)4); SAY("GET %b", "k\0y", (size_t)3);
    SAY("SELECT 3"); SAY("SET s three"); SAY("GET s"); SAY("SELECT 0"); SAY("GET s"); SAY("SELECT 99");
}

static void pipeline(void)
{
    for (int i = 0; i < 500; i++) { redisAppendCommand(client, "SET p%d v%d", i, i); redisAppendCommand(client, "GET p%d", i); }
    int right = 0;
    for (int i = 0; i < 500; i++) {
        redisReply *set, *get;
        char expected[20];
        if (redisGetReply(client, (void **)&set) || redisGetReply(client, (void **)&get)) { fprintf(stderr, "%s\n", client->errstr); exit(1); }
        snprintf(expected, sizeof expected, "v%d", i);
        right += set->type == REDIS_REPLY_STATUS && get->type == REDIS_REPLY_STRING && !strcmp(get->str, expected);
        freeReplyObject(set); freeReplyObject(get);
    }
    printf("pipeline: %d right\n", right);
}

static void transactions(void)
{
    SAY("MULTI"); SAY("SET m 1"); SAY("INCR m"); SAY("LPUSH m x"); SAY("EXEC");
    SAY("MULTI"); SAY("SET"); SAY("EXEC");
    SAY("MULTI"); SAY("MULTI"); SAY("WATCH m"); SAY("DISCARD"); SAY("EXEC"); SAY("DISCARD");
    SAY("WATCH m"); SAY("GET m"); SAY("MULTI"); SAY("SET m mine"); SAY("EXEC");
    SAY("WATCH m"); SAY("GET m"); OTHER("SET m by-another"); SAY("MULTI"); SAY("SET m mine"); SAY("EXEC"); SAY("GET m");
    SAY("WATCH m"); OTHER("SET m again"); SAY("UNWATCH"); SAY("MULTI"); SAY("SET m mine"); SAY("EXEC");
}

static void scripts(void)
{
    SAY("SCRIPT FLUSH");
    SAY("EVALSHA %s 1 counted 3", "c1c75fd9a8a0b4a7b0ae8d2ba7d5cbfc6a93f8d0");
    SAY("EVAL %s 1 counted 3", "return {redis.call('incrby', KEYS[1], ARGV[1]), 'x', false}");
    SAY("SCRIPT LOAD %s", "return redis.call('get', KEYS[1])");
    redisReply *sha = redisCommand(client, "SCRIPT LOAD %s", "return redis.call('incr', KEYS[1])");
    line("EVALSHA", redisCommand(client, "EVALSHA %s 1 counted", sha->str));
    freeReplyObject(sha);
    SAY("GET counted");
    SAY("EVAL %s 0", "return redis.error_reply('MINE of my own')");
}

static void big_and_scan(void)
{
    char *value = malloc(5000000);
    memset(value, 'n', 5000000);
    value[4999999] = 'e';
    SAY("SET big %b", value, (size_t)5000000);
    free(value);
    SAY("GET big"); SAY("GET big"); SAY("STRLEN big"); OTHER("GET big");
    int found = 0;
    char cursor[32] = "0";
    do {
        redisReply *reply = redisCommand(client, "SCAN %s MATCH p* COUNT 100", cursor);
        snprintf(cursor, sizeof cursor, "%s", reply->element[0]->str);
        found += reply->element[1]->elements;
        freeReplyObject(reply);
    } while (strcmp(cursor, "0"));
    printf("scan: %d\n", found);
}

static void reconnect(void)
{
    redisReply *id = redisCommand(client, "CLIENT ID");
    OTHER("PING");
    redisReply *killed = redisCommand(client, "CLIENT KILL ID %lld SKIPME no", id->integer);
    line("killed itself", killed);
    freeReplyObject(id);
    SAY("PING");
    printf("error: %d\n", client->err != 0); /* reset or end of file: a matter of timing */
    printf("reconnect: %d\n", redisReconnect(client));
    SAY("GET counted");
}

/* the asynchronous half: a subscriber, a client that waits in BLPOP, a pipeline with replies by callback */
static struct event_base *base;
static redisAsyncContext *subscriber, *waiting;
static int answered, messages;

static void on_get(redisAsyncContext *context, void *reply, void *number)
{
    (void)context;
    if (++answered % 250 == 0) { printf("async %ld: ", (long)number); show(reply); printf("\n"); }
}

static void on_message(redisAsyncContext *context, void *data, void *nothing);

static void on_pop(redisAsyncContext *context, void *reply, void *nothing)
{
    (void)nothing;
    printf("async blpop: "); show(reply); printf("\n");
    redisAsyncDisconnect(context);
    redisAsyncCommand(subscriber, on_message, NULL, "UNSUBSCRIBE");
}

static void on_message(redisAsyncContext *context, void *data, void *nothing)
{
    (void)nothing;
    redisReply *reply = data;
    if (!reply) return;
    printf("message: "); show(reply); printf("\n");
    if (!strcmp(reply->element[0]->str, "psubscribe")) {
        OTHER("PUBLISH news hello"); OTHER("PUBLISH sport.chess mate");
    }
    /* each connection's turn comes when the other's is over: what two connections are told comes in no certain order */
    if (strstr(reply->element[0]->str, "message") && ++messages == 2) OTHER("RPUSH queue job");
    if (!strcmp(reply->element[0]->str, "unsubscribe")) redisAsyncDisconnect(context);
}

static void on_connect(const redisAsyncContext *context, int status) { (void)context; if (status) printf("connect failed\n"); }
static void on_disconnect(const redisAsyncContext *context, int status) { (void)context; printf("disconnected: %d\n", status); }

static redisAsyncContext *open_async(int port)
{
    redisAsyncContext *context = redisAsyncConnect("127.0.0.1", port);
    if (!context || context->err) exit(1);
    redisLibeventAttach(context, base);
    redisAsyncSetConnectCallback(context, on_connect);
    return context;
}

static void asynchronous(int port)
{
    base = event_base_new();
    waiting = open_async(port);
    for (long i = 0; i < 500; i++) {
        redisAsyncCommand(waiting, NULL, NULL, "SET a%ld %ld", i, i * i);
        redisAsyncCommand(waiting, on_get, (void *)i, "GET a%ld", i);
    }
    redisAsyncCommand(waiting, on_pop, NULL, "BLPOP queue 10");
    event_base_loop(base, EVLOOP_NONBLOCK);
    while (answered < 500) event_base_loop(base, EVLOOP_ONCE);
    subscriber = open_async(port);
    redisAsyncSetDisconnectCallback(subscriber, on_disconnect);
    redisAsyncCommand(subscriber, on_message, NULL, "SUBSCRIBE news");
    while (!messages && answered == 500 && !subscriber->c.err && !(subscriber->c.flags & REDIS_SUBSCRIBED)) event_base_loop(base, EVLOOP_ONCE);
    redisAsyncCommand(subscriber, on_message, NULL, "PSUBSCRIBE sport.*");
    event_base_dispatch(base);
    event_base_free(base);
}

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    client = open_at(atoi(argv[1]));
    other = open_at(atoi(argv[2]));
    types(); pipeline(); transactions(); scripts(); big_and_scan(); reconnect();
    fflush(stdout);
    asynchronous(atoi(argv[1]));
    redisFree(client);
    redisFree(other);
    printf("done\n");
    return 0;
}
