//! proxy.toml and flags to a `Config`: what is taken, what is refused, and what the refusal says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use nearside::config::{Address, Config, Level, Overrides, ScriptKeys, Source, Upstream};
use proptest::prelude::*;
use std::time::Duration;

fn parse(text: &str) -> Config {
    Config::from_toml(text, "proxy.toml").unwrap_or_else(|e| panic!("{e}"))
}

fn refusal(text: &str) -> String {
    Config::from_toml(text, "proxy.toml").expect_err(text).to_string()
}

fn shipped() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.toml")).unwrap()
}

#[test]
fn the_shipped_file_says_the_defaults() {
    assert_eq!(parse(&shipped()), Config::default());
    assert_eq!(parse(""), Config::default());
}

#[test]
fn the_shipped_file_sets_every_key() {
    let table: toml::Table = shipped().parse().unwrap();
    let missing: Vec<_> = Config::keys().iter().filter(|key| !table.contains_key(**key)).collect();
    assert!(missing.is_empty(), "proxy.toml lacks {missing:?}");
    assert_eq!(table.len(), Config::keys().len());
}

#[test]
fn every_setting_is_taken() {
    let text = r#"
        upstream = "redis://u:p%40ss@cache.example:7000/3"
        threads = 3
        consistency = "causal"
        max_staleness = "2s"
        heartbeat = "50ms"
        upstream_timeout = "3s"
        connect_timeout = "4s"
        reconnect_max = "5s"
        max_memory = "1gb"
        max_entry = 4096
        script_keys = "declared"
        maxclients = 7
        timeout = "5m"
        proto_max_bulk_len = "1mb"
        client_query_buffer_limit = "2mb"
        client_output_buffer_limit = "3mb"
        client_output_buffer_limit_pubsub = "2mb"
        max_dedicated = 8
        lane_buffer_limit = "4mb"
        shutdown_grace = "0"
        log = "nearside=debug,warn"
        [[listen]]
        address = "[::1]:6380"
        [[listen]]
        address = "unix:/run/nearside.sock"
        consistency = "linearizable"
    "#;
    let config = parse(text);
    let expected = Config {
        listen: vec![
            nearside::config::Listen { address: Address::Tcp("::1".into(), 6380), consistency: Level::Causal },
            nearside::config::Listen {
                address: Address::Unix("/run/nearside.sock".into()),
                consistency: Level::Linearizable,
            },
        ],
        upstream: Some(Upstream {
            address: Address::Tcp("cache.example".into(), 7000),
            username: Some("u".into()),
            password: Some("p@ss".into()),
            db: 3,
        }),
        threads: 3,
        max_staleness: Duration::from_secs(2),
        heartbeat: Duration::from_millis(50),
        upstream_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(4),
        reconnect_max: Duration::from_secs(5),
        max_memory: 1 << 30,
        max_entry: 4096,
        script_keys: ScriptKeys::Declared,
        maxclients: 7,
        timeout: Duration::from_secs(300),
        proto_max_bulk_len: 1 << 20,
        client_query_buffer_limit: 2 << 20,
        client_output_buffer_limit: 3 << 20,
        client_output_buffer_limit_pubsub: 2 << 20,
        max_dedicated: 8,
        lane_buffer_limit: 4 << 20,
        shutdown_grace: Duration::ZERO,
        log: "nearside=debug,warn".into(),
    };
    assert_eq!(config, expected);
}

/// What is written, the line it is at, and words of the answer.
const REFUSED: &[(&str, &str, &[&str])] = &[
    ("\nmax_memry = \"1gb\"", ":2: ", &["max_memry", "unknown field", "`max_memory`"]),
    ("max_memory = \"lots\"", ":1: max_memory: ", &["`lots`", "256mb"]),
    ("max_memory = \"1kb\"", ":1: max_memory: ", &["1kb is out of range", "1mb"]),
    ("max_memory = -1", ":1: max_memory: ", &["`-1`"]),
    ("max_memory = true", ":1: max_memory: ", &["boolean", "a string or a whole number"]),
    ("max_memory = \"99999999999gb\"", ":1: max_memory: ", &["no size"]),
    ("# why\n\ntimeout = 300", ":3: timeout: ", &["`300` is no duration", "ms"]),
    ("threads = 0", ":1: threads: ", &["1 to 256"]),
    ("threads = 257", ":1: threads: ", &["1 to 256"]),
    ("threads = \"many\"", ":1: threads: ", &["auto"]),
    ("maxclients = 0", ":1: maxclients: ", &["1 to 1000000"]),
    ("max_dedicated = 0", ":1: max_dedicated: ", &["1 to"]),
    ("heartbeat = \"0\"", ":1: heartbeat: ", &["1ms"]),
    ("heartbeat = \"1s\"", ":1: heartbeat: ", &["shorter than max_staleness (1s)"]),
    ("max_staleness = \"100ms\"", ":1: heartbeat: ", &["shorter than max_staleness (100ms)"]),
    ("upstream_timeout = \"50ms\"", ":1: heartbeat: ", &["shorter than upstream_timeout (50ms)"]),
    ("max_memory = \"2mb\"\nmax_entry = \"3mb\"", ":2: max_entry: ", &["max_memory (2mb)"]),
    ("client_query_buffer_limit = \"1mb\"", ":1: proto_max_bulk_len: ", &["raise client_query_buffer_limit"]),
    ("consistency = \"strong\"", ":1: consistency: ", &["`strong`", "bounded", "causal", "linearizable"]),
    ("script_keys = \"none\"", ":1: script_keys: ", &["any", "declared"]),
    ("log = \"inof\"", ":1: log: ", &["`inof`", "info"]),
    ("threads = 1\nthreads = 2", ":2: ", &["duplicate key"]),
    ("threads = ", ":1: ", &[]),
    ("listen = []", ": listen: ", &["[[listen]]"]),
    ("listen = [\"127.0.0.1:1\"]", ":1: listen: ", &["[[listen]]", "address ="]),
    ("listen = \"127.0.0.1:1\"", ":1: listen: ", &["[[listen]]", "address ="]),
    ("[[listen]]", ":1: ", &["missing field `address`"]),
    ("[[listen]]\naddress = 6380", ":2: address: ", &["127.0.0.1:6380", "unix:"]),
    ("[[listen]]\naddress = \"localhost:70000\"", ":2: address: ", &["127.0.0.1:6380"]),
    ("[[listen]]\naddress = \"::1:6380\"", ":2: address: ", &["[::1]:6380"]),
    ("[[listen]]\naddress = \"unix:\"", ":2: address: ", &["missing"]),
    ("[[listen]]\naddress = \"a:1\"\nlevel = \"causal\"", ":3: ", &["unknown field `level`", "consistency"]),
    ("[[listen]]\naddress = \"a:1\"\n[[listen]]\naddress = \"a:1\"", ":4: listen: ", &["twice"]),
    ("upstream = \"localhost:6379\"", ":1: upstream: ", &["redis://user:password@host:6379/0"]),
    ("upstream = \"rediss://host\"", ":1: upstream: ", &["TLS"]),
    ("upstream = \"redis://host:0\"", ":1: upstream: ", &["port"]),
    ("upstream = \"redis://host/abc\"", ":1: upstream: ", &["database"]),
    ("upstream = \"redis://host/-1\"", ":1: upstream: ", &["database"]),
    ("upstream = \"redis://host?db=1\"", ":1: upstream: ", &["behind `?`"]),
    ("upstream = \"unix:///a.sock?database=1\"", ":1: upstream: ", &["behind `?`"]),
];

#[test]
fn what_is_refused_is_told_with_its_line_and_what_is_allowed() {
    for (text, place, words) in REFUSED {
        let said = refusal(text);
        assert!(said.starts_with("proxy.toml"), "{said}");
        assert!(said.contains(place), "{text:?}: no {place:?} in {said}");
        for word in *words {
            assert!(said.contains(word), "{text:?}: no {word:?} in {said}");
        }
    }
}

#[test]
fn a_unix_socket_path_that_the_kernel_cannot_take_is_refused() {
    let said = refusal(&format!("[[listen]]\naddress = \"unix:/{}\"", "x".repeat(107)));
    assert!(said.contains("108 bytes"), "{said}");
}

#[test]
fn port_zero_may_stand_twice() {
    assert_eq!(parse("[[listen]]\naddress = \"a:0\"\n[[listen]]\naddress = \"a:0\"").listen.len(), 2);
}

#[test]
fn upstream_urls() {
    let upstream = |url: &str| url.parse::<Upstream>().unwrap_or_else(|e| panic!("{url}: {e}"));
    let plain = upstream("redis://localhost");
    assert_eq!(plain.address, Address::Tcp("localhost".into(), 6379));
    assert_eq!((plain.username, plain.password, plain.db), (None, None, 0));
    assert_eq!(upstream("redis://:secret@h:1").password.as_deref(), Some("secret"));
    assert_eq!(upstream("redis://[::1]:7/2").address.to_string(), "[::1]:7");
    assert_eq!(upstream("valkey://h").address, Address::Tcp("h".into(), 6379));
    for scheme in ["unix", "redis+unix"] {
        let unix = upstream(&format!("{scheme}:///run/r.sock?db=2&user=u&pass=p"));
        assert_eq!(unix.address, Address::Unix("/run/r.sock".into()));
        assert_eq!((unix.username.as_deref(), unix.password.as_deref(), unix.db), (Some("u"), Some("p"), 2));
    }
    assert_eq!(parse("upstream = \"embedded\"").upstream, None);
}

#[test]
fn no_message_shows_a_password() {
    let urls = ["redis://u:hunter2@h/x", "rediss://u:hunter2@h", "http://u:hunter2@h", "redis://u:hunter2@h:99999"];
    for url in urls {
        let said = refusal(&format!("upstream = \"{url}\""));
        assert!(!said.contains("hunter2"), "{said}");
    }
    let config = parse("upstream = \"redis://u:hunter2@h\"");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!config.upstream.unwrap().to_string().contains("hunter2"));
}

#[test]
fn flags_beat_the_file_and_the_file_beats_the_defaults() {
    let text = "threads = 3\nmax_memory = \"3mb\"\nmaxclients = 3\n[[listen]]\naddress = \"a:1\"";
    let flags = Overrides {
        listen: vec!["b:2".into(), "unix:/c".into()],
        consistency: Some("linearizable".into()),
        threads: Some("5".into()),
        ..Overrides::default()
    };
    let config = Config::resolve(Some(Source { text, filename: "proxy.toml" }), &flags).unwrap();
    assert_eq!((config.threads, config.max_memory, config.maxclients), (5, 3 << 20, 3));
    assert_eq!(config.max_dedicated, Config::default().max_dedicated);
    let doors: Vec<_> = config.listen.iter().map(|listen| (listen.address.to_string(), listen.consistency)).collect();
    assert_eq!(doors, [("b:2".into(), Level::Linearizable), ("unix:/c".into(), Level::Linearizable)]);
}

#[test]
fn the_consistency_flag_leaves_listeners_that_name_their_own() {
    let text = "consistency = \"causal\"\n[[listen]]\naddress = \"a:1\"\n[[listen]]\naddress = \"a:2\"\nconsistency = \"causal\"";
    let flags = Overrides { consistency: Some("linearizable".into()), ..Overrides::default() };
    let config = Config::resolve(Some(Source { text, filename: "proxy.toml" }), &flags).unwrap();
    let levels: Vec<_> = config.listen.iter().map(|listen| listen.consistency).collect();
    assert_eq!(levels, [Level::Linearizable, Level::Causal]);
}

#[test]
fn a_bad_flag_is_named() {
    let flags = Overrides { max_memory: Some("1kb".into()), ..Overrides::default() };
    assert!(Config::resolve(None, &flags).unwrap_err().to_string().starts_with("--max-memory: 1kb is out of range"));
    let flags = Overrides { threads: Some("x".into()), ..Overrides::default() };
    assert!(Config::resolve(None, &flags).unwrap_err().to_string().starts_with("--threads: `x`"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(key in "[a-z_]{1,12}|max_memory|timeout|upstream|log|listen", value in "\\PC{0,24}") {
        let _ = Config::from_toml(&format!("{key} = {value}"), "f");
        let _ = Config::from_toml(&format!("{key} = {}", toml::Value::String(value)), "f");
    }
}
