use super::*;

/// The ranges of whitespace-separated words; `""` is an empty one.
fn plan_of(table: &CommandTable, text: &str) -> (Plan, Vec<usize>, Vec<usize>) {
    let mut buf = Vec::new();
    let mut args = Vec::new();
    for word in text.split(' ') {
        let start = buf.len();
        buf.extend_from_slice(if word == "\"\"" { b"" } else { word.as_bytes() });
        args.push(start..buf.len());
    }
    let mut keys = Keys { writes: vec![99], reads: vec![99] };
    let plan = table.plan(&Request { buf: &buf, args: &args, hash: None }, &mut keys);
    (plan, keys.writes, keys.reads)
}

fn empty() -> CommandTable {
    CommandTable::by_heart(ScriptKeys::Any)
}

#[test]
fn rows_are_unique_and_lower_case_and_fit_the_lookup() {
    let mut names = std::collections::HashSet::new();
    for row in table::ROWS {
        assert!(names.insert(row.name), "{} twice", row.name);
        assert!(row.name.len() <= NAME_MAX && row.name == row.name.to_lowercase(), "{}", row.name);
    }
}

#[test]
fn reads_come_first_so_that_ids_are_stable() {
    let read = |row: &table::Row| matches!(row.fate, StaticRoute::Read(_));
    assert!(table::ROWS.is_sorted_by_key(|row| !read(row)));
    let (short, ..) = plan_of(&empty(), "gEt k");
    assert_eq!((short.id, table::ROWS[0].name), (GET_ID, "get"));
}

#[test]
fn the_short_way_of_get_says_what_the_long_way_says() {
    let table = empty();
    let spec = table.spoken(b"get").expect("GET has a row");
    let request = Request { buf: b"getk", args: &[0..3, 3..4], hash: None };
    assert_eq!((table.route(spec, &request), spec.id), (GET.route, GET.id));
    assert_eq!(plan_of(&table, "GET k"), (GET, vec![], vec![1]));
}

#[test]
fn spellings_share_an_id_and_names_do_not() {
    let table = empty();
    let id = |text| plan_of(&table, text).0.id;
    assert_eq!(id("HGET k f"), id("hgEt k f"));
    let ids = ["get k", "mget k", "hget k f", "strlen k", "pfcount k"].map(id);
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), ids.len());
    assert_eq!(["set k v", "get", "exists a b", "ping"].map(id), [0; 4]);
}

#[test]
fn without_a_table_the_core_is_known_by_heart_and_no_more() {
    for (text, effect, writes, reads) in [
        ("SET k v", EffectClass::Keys, vec![1], vec![]),
        ("DEL a b", EffectClass::Keys, vec![1, 2], vec![]),
        ("MSET a 1 b 2", EffectClass::Keys, vec![1, 3], vec![]),
        ("TTL k", EffectClass::Keys, vec![], vec![1]),
        ("PING", EffectClass::None, vec![], vec![]),
        ("CONFIG GET x", EffectClass::None, vec![], vec![]),
    ] {
        let (plan, w, r) = plan_of(&empty(), text);
        assert_eq!((plan.route, plan.effect, w, r), (Route::Lane, effect, writes, reads), "{text}");
    }
    for text in ["NOSUCH", "JSON.SET k . 1", "client|list", "config|get maxmemory", &"x".repeat(NAME_MAX + 1)] {
        assert_eq!(plan_of(&empty(), text).0, UNLISTED, "{text}");
    }
    // A server that has not listed its subcommands may have others, which change the connection.
    for text in ["CLIENT NOSUCH", &format!("CLIENT {}", "x".repeat(NAME_MAX))] {
        assert_eq!(plan_of(&empty(), text).0, OWN_CONNECTION, "{text}");
    }
}

/// An entry of COMMAND as Redis 6.2 gives it; the first key is argument 1 unless it has none.
fn entry(name: &str, arity: i64, flags: &[&str], key: bool) -> String {
    let listed: String = flags.iter().map(|flag| format!("+{flag}\r\n")).collect();
    let place = i64::from(key);
    let length = name.len();
    format!("*6\r\n${length}\r\n{name}\r\n:{arity}\r\n*{}\r\n{listed}:{place}\r\n:{place}\r\n:{place}\r\n", flags.len())
}

fn list(entries: &[String]) -> String {
    format!("*{}\r\n{}", entries.len(), entries.concat())
}

/// A server that has renamed GET to `fetch`, MONITOR to `watchall`, FLUSHALL and CLIENT to nothing.
fn renamed() -> CommandTable {
    let get = || entry("get", 2, &["readonly"], true);
    let (mget, flush) = (entry("mget", -2, &["readonly"], true), entry("flushall", -1, &["write"], false));
    let monitor = entry("monitor", 1, &[], false);
    let all = list(&[get(), mget, flush, monitor.clone()]);
    let mut table = CommandTable::from_command_reply(all.as_bytes(), ScriptKeys::Any).expect("a table");
    let asked: Vec<Vec<u8>> =
        [&b"get"[..], b"mget", b"flushall", b"monitor", b"client", b"fetch"].map(<[u8]>::to_vec).into();
    let nil = || "*-1\r\n".to_owned();
    let told = list(&[nil(), entry("mget", -2, &["readonly"], true), nil(), nil(), nil(), get()]);
    table.heed(&asked, told.as_bytes()).expect("its names");
    let Ok(Meaning::Command(table)) = table.learn(b"WatchAll", list(&[monitor]).as_bytes()) else {
        panic!("a command")
    };
    *table
}

#[test]
fn a_renamed_command_is_what_it_was_by_its_new_name_only() {
    let table = renamed();
    for old in ["GET k", "get k", "GET", "FLUSHALL", "MONITOR", "CLIENT ID"] {
        assert_eq!(plan_of(&table, old).0, UNLISTED, "{old}");
    }
    let fetch = plan_of(&table, "Fetch k").0;
    assert_eq!((fetch.route, fetch.name, fetch.repeatable), (GET.route, GET.name, true));
    assert!(fetch.id != GET.id && fetch.id != 0, "who says GET must not find what fetch has cached");
    assert_eq!(plan_of(&table, "MGET k").0.route, Route::Lane, "nor what MGET would cache as GETs");
    let monitor = plan_of(&table, "WATCHALL").0;
    assert_eq!((monitor.route, monitor.word), (Route::Dedicated(Need::Pin), Word::Monitor));
    assert_eq!(
        (table.says("GET"), table.says("MONITOR"), table.says("MGET")),
        (&b"fetch"[..], &b"watchall"[..], &b"MGET"[..])
    );
    assert_eq!((table.renamed(), table.knows(b"FETCH"), table.knows(b"get")), (2, true, false));
}

#[test]
fn names_that_were_learned_are_asked_about_again() {
    let asked = empty().names_to_ask(&renamed());
    let has = |name: &[u8]| asked.iter().any(|asked| asked == name);
    assert!(has(b"fetch") && has(b"watchall") && has(b"get") && !has(b"nearside") && !has(b"client|id"));
}

#[test]
fn a_server_that_knows_no_name_at_all_has_said_nothing() {
    let mut table = empty();
    let asked = vec![b"get".to_vec(), b"set".to_vec()];
    for reply in ["*2\r\n*-1\r\n*-1\r\n", "*0\r\n", "-NOPERM no\r\n", "*1\r\n*-1\r\n", "+OK\r\n"] {
        assert!(table.heed(&asked, reply.as_bytes()).is_err(), "{reply:?}");
        assert_eq!(plan_of(&table, "GET k").0, GET);
    }
    assert!(matches!(table.learn(b"x", b"*1\r\n*-1\r\n"), Ok(Meaning::NoCommand)));
    assert!(matches!(table.learn(b"x", b"*1\r\n$-1\r\n"), Ok(Meaning::NoCommand)));
    for reply in ["*0\r\n", "-ERR unknown command\r\n", "*2\r\n*-1\r\n*-1\r\n"] {
        assert!(table.learn(b"x", reply.as_bytes()).is_err(), "{reply:?}");
    }
}

#[test]
fn a_renamed_container_has_its_subcommands() {
    let client = entry("client", -2, &[], false);
    let Ok(Meaning::Command(table)) = empty().learn(b"xclient", list(&[client]).as_bytes()) else {
        panic!("a command")
    };
    assert_eq!(plan_of(&table, "xClient tracking on").0.word, Word::Tracking);
    assert_eq!(plan_of(&table, "XCLIENT ID").0.route, Route::Local(Local::Client));
    assert_eq!(plan_of(&table, "XCLIENT PAUSE 1").0.word, Word::Pause);
}

#[test]
fn without_a_table_our_rows_hold() {
    let route = |text| plan_of(&empty(), text).0.route;
    assert_eq!(route("SELECT 1"), Route::Local(Local::Select));
    assert_eq!(route("client setname x"), Route::Local(Local::Client));
    assert_eq!(route("CLIENT"), Route::Lane);
    assert_eq!(route("client reply off"), Route::Dedicated(Need::Pin));
    assert_eq!(route("POST / HTTP/1.1"), Route::Dedicated(Need::Pin));
    assert_eq!(route("blpop k 0"), Route::Dedicated(Need::Block));
    assert_eq!(route("multi x"), Route::Lane);
    assert_eq!(route("mget a b"), Route::Cache(CacheRead::Mget));
    // No table, no knowledge of HPEXPIRE: a field may have a TTL.
    assert_eq!(route("hmget k a b"), Route::Cache(CacheRead::One(FieldTtl::Named)));
    assert_eq!(route("hgetall k"), Route::Cache(CacheRead::One(FieldTtl::Whole)));
    assert_eq!(plan_of(&empty(), "FLUSHALL").0.effect, EffectClass::Flush);
    assert_eq!(route("EVAL s 0"), Route::Dedicated(Need::Alone));
    assert_eq!(plan_of(&empty(), "debug sleep 0").0.effect, EffectClass::None);
    assert_eq!(plan_of(&empty(), "debug nosuch").0.effect, EffectClass::Flush);
}

#[test]
fn scripts_wait_for_a_barrier_unless_their_keys_are_believed() {
    let declared = CommandTable::by_heart(ScriptKeys::Declared);
    for (text, writes, reads) in [
        ("EVAL s 2 a b c", vec![3, 4], vec![]),
        ("FCALL f 0", vec![], vec![]),
        ("evalsha_ro s 1 a", vec![], vec![3]),
        ("EVAL s 9 a", vec![3], vec![]),
    ] {
        let (plan, w, r) = plan_of(&empty(), text);
        assert_eq!((plan.effect, &w, &r), (EffectClass::Unknown, &writes, &reads), "{text}");
        assert_eq!(plan_of(&declared, text).0.effect, EffectClass::Keys, "{text}");
    }
    assert_eq!(plan_of(&declared, "EVAL s x a").0.effect, EffectClass::Unknown);
}

#[test]
fn options_that_store_or_read_elsewhere_are_found() {
    for (text, effect, writes, reads) in [
        ("sort k LIMIT 0 5 desc", EffectClass::Keys, vec![], vec![1]),
        ("sort k by nosort get # store d", EffectClass::Keys, vec![7], vec![1]),
        ("sort k by w_* store d", EffectClass::Unknown, vec![5], vec![1]),
        ("sort_ro k get o_*->f", EffectClass::Unknown, vec![], vec![1]),
        ("georadius k 1 2 3 m store d", EffectClass::Keys, vec![7], vec![1]),
        ("georadiusbymember k m 3 m withcoord STOREDIST d STORE e", EffectClass::Keys, vec![7, 9], vec![1]),
        ("migrate h 1 k 0 9", EffectClass::Keys, vec![3], vec![]),
        ("migrate h 1 \"\" 0 9 replace KEYS a b", EffectClass::Keys, vec![8, 9], vec![]),
        ("migrate h 1 \"\" 0 9", EffectClass::Unknown, vec![], vec![]),
        ("zunionstore d 2 a b weights 1 2", EffectClass::Keys, vec![1], vec![3, 4]),
        ("xread count 1 streams a b 0 0", EffectClass::Keys, vec![], vec![4, 5]),
    ] {
        let (plan, w, r) = plan_of(&empty(), text);
        assert_eq!((plan.effect, w, r), (effect, writes, reads), "{text}");
    }
}

#[test]
fn xread_blocks_only_if_it_says_so() {
    for (text, route) in [
        ("XREAD STREAMS block 0", Route::Lane),
        ("XREAD COUNT 1 bLock 0 STREAMS k $", Route::Dedicated(Need::Block)),
        ("XREADGROUP GROUP block streams STREAMS k >", Route::Lane),
        ("XREADGROUP GROUP streams c NOACK BLOCK 9 STREAMS k >", Route::Dedicated(Need::Block)),
    ] {
        assert_eq!(plan_of(&empty(), text).0.route, route, "{text}");
    }
}

#[test]
fn what_is_no_table_is_refused() {
    for reply in
        ["", "*", "*1\r\n", "-NOPERM no\r\n", "*0\r\n", "+OK\r\n", "*1\r\n+get\r\n", "*1\r\n*2\r\n+get\r\n:2\r\n"]
    {
        assert!(CommandTable::from_command_reply(reply.as_bytes(), ScriptKeys::Any).is_err(), "{reply:?}");
    }
}

#[test]
fn any_arguments_are_survived() {
    let table = empty();
    for row in table::ROWS {
        let name = row.name.replace('|', " ");
        for tail in ["", " 1", " \"\" store", " -1 18446744073709551615", " keys block streams streams by get store"] {
            let text = format!("{name}{tail}");
            let (_, writes, reads) = plan_of(&table, &text);
            let len = text.split(' ').count();
            assert!(writes.iter().chain(&reads).all(|i| *i > 0 && *i < len), "{text}");
        }
    }
}

#[test]
fn a_plan_names_its_command_as_client_list_does() {
    let table = empty();
    let name = |text: &str| table.name(plan_of(&table, text).0.name).to_owned();
    assert_eq!(name("GET k"), "get");
    assert_eq!(name("mget a b"), "mget");
    assert_eq!(name("Client List"), "client|list");
    assert_eq!(name("NOSUCH"), "NULL");
}

#[test]
fn a_short_name_is_found_only_as_it_is_spelled() {
    let table = empty();
    let id = |name: &str| plan_of(&table, &format!("{name} k")).0.id;
    assert_eq!(id("StRlEn"), id("strlen"));
    assert_ne!(id("strlen"), 0);
    for other in ["\0strlen", "strlen\0", "str\0len", "strle", "strlenn", "strlenstrlen", "\"\"", "\0"] {
        assert_eq!(id(other), 0, "{other:?}");
    }
}
