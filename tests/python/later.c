/* A module for test_modules.py: three commands that a server gets while it runs. It declares what it uses of the servers' interface. */
#include <stddef.h>

typedef struct Ctx Ctx;
typedef struct Str Str;
typedef struct Reply Reply;
typedef int (*Command)(Ctx *, Str **, int);

static int (*create)(Ctx *, const char *, Command, const char *, int, int, int);
static void (*attribs)(Ctx *, const char *, int, int);
static Reply *(*call)(Ctx *, const char *, const char *, ...);
static int (*pass)(Ctx *, Reply *);
static int (*arity)(Ctx *);

/* A write to the key that it names. */
static int put(Ctx *ctx, Str **argv, int argc) {
    return argc == 3 ? pass(ctx, call(ctx, "SET", "ss!", argv[1], argv[2])) : arity(ctx);
}

/* A write to a key that nothing declares. */
static int hidden(Ctx *ctx, Str **argv, int argc) {
    return argc == 3 ? pass(ctx, call(ctx, "SET", "ss!", argv[1], argv[2])) : arity(ctx);
}

/* A read. */
static int fetch(Ctx *ctx, Str **argv, int argc) {
    return argc == 2 ? pass(ctx, call(ctx, "GET", "s", argv[1])) : arity(ctx);
}

int RedisModule_OnLoad(Ctx *ctx, Str **argv, int argc) {
    int (*get)(const char *, void *) = (int (*)(const char *, void *))((void **)ctx)[0];
    (void)argv;
    (void)argc;
    get("RedisModule_CreateCommand", &create);
    get("RedisModule_SetModuleAttribs", &attribs);
    get("RedisModule_Call", &call);
    get("RedisModule_ReplyWithCallReply", &pass);
    get("RedisModule_WrongArity", &arity);
    attribs(ctx, "later", 1, 1);
    return create(ctx, "later.put", put, "write", 1, 1, 1) || create(ctx, "laterhidden", hidden, "write", 0, 0, 0) ||
           create(ctx, "later.fetch", fetch, "readonly", 1, 1, 1);
}
