//! proxy.toml and flags to a `Config`: what is taken, what is refused, and what the refusal says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use nearside::config::{
    Address, AuthClients, Config, Invalidation, Level, ListenTls, Overrides, ScriptKeys, Source, Upstream, UpstreamTls,
};
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

const EVERY_SETTING: &str = r#"
    upstream = "rediss://u:p%40ss@cache.example:7000/3"
    upstream_tls_ca = "/ca.crt"
    upstream_tls_cert = "/proxy.crt"
    upstream_tls_key = "/proxy.key"
    upstream_tls_server_name = "redis.example"
    upstream_tls_insecure = true
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
    clients_together = 3
    timeout = "5m"
    proto_max_bulk_len = "1mb"
    client_query_buffer_limit = "2mb"
    client_output_buffer_limit = "3mb"
    client_output_buffer_limit_pubsub = "2mb"
    maxmemory_clients = "25%"
    max_dedicated = 8
    dedicated_idle_timeout = "9s"
    max_lanes = 9
    lane_idle_timeout = "10s"
    lane_buffer_limit = "4mb"
    wrong_passwords_per_second = 11
    invalidation = "broadcast"
    broadcast_prefixes = ["a:", "b:"]
    max_ttl = "1h"
    audit_one_in = 0
    audit_per_second = 9
    touch_per_second = 7
    shutdown_grace = "0"
    log = "nearside=debug,warn"
    log_buffer_limit = "2mb"
    unixsocketperm = 770
    [[listen]]
    address = "[::1]:6380"
    tls_cert = "/server.crt"
    tls_key = "/server.key"
    tls_ca = "/clients.crt"
    tls_auth_clients = "optional"
    [[listen]]
    address = "unix:/run/nearside.sock"
    consistency = "linearizable"
    [[listen]]
    address = "unix:/run/other.sock"
    unixsocketperm = "700"
"#;

fn every_door() -> Vec<nearside::config::Listen> {
    vec![
        nearside::config::Listen {
            address: Address::Tcp("::1".into(), 6380),
            consistency: Level::Causal,
            tls: Some(ListenTls {
                cert: "/server.crt".into(),
                key: "/server.key".into(),
                ca: Some("/clients.crt".into()),
                auth_clients: AuthClients::Optional,
            }),
            unixsocketperm: None,
        },
        nearside::config::Listen {
            address: Address::Unix("/run/nearside.sock".into()),
            consistency: Level::Linearizable,
            tls: None,
            unixsocketperm: Some(0o770),
        },
        nearside::config::Listen {
            address: Address::Unix("/run/other.sock".into()),
            consistency: Level::Causal,
            tls: None,
            unixsocketperm: Some(0o700),
        },
    ]
}

#[test]
fn every_setting_is_taken() {
    let expected = Config {
        listen: every_door(),
        upstream: Some(Upstream {
            address: Address::Tcp("cache.example".into(), 7000),
            username: Some("u".into()),
            password: Some("p@ss".into()),
            db: 3,
            tls: Some(UpstreamTls {
                ca: Some("/ca.crt".into()),
                cert_and_key: Some(("/proxy.crt".into(), "/proxy.key".into())),
                server_name: Some("redis.example".into()),
                insecure: true,
            }),
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
        clients_together: 3,
        timeout: Duration::from_secs(300),
        proto_max_bulk_len: 1 << 20,
        client_query_buffer_limit: 2 << 20,
        client_output_buffer_limit: 3 << 20,
        client_output_buffer_limit_pubsub: 2 << 20,
        maxmemory_clients: 256 << 20,
        max_dedicated: 8,
        dedicated_idle_timeout: Duration::from_secs(9),
        max_lanes: 9,
        lane_idle_timeout: Duration::from_secs(10),
        lane_buffer_limit: 4 << 20,
        wrong_passwords_per_second: 11,
        invalidation: Invalidation::Broadcast,
        broadcast_prefixes: vec!["a:".into(), "b:".into()],
        max_ttl: Duration::from_secs(3600),
        audit_one_in: 0,
        audit_per_second: 9,
        touch_per_second: 7,
        shutdown_grace: Duration::ZERO,
        log: "nearside=debug,warn".into(),
        log_buffer_limit: 2 << 20,
    };
    assert_eq!(parse(EVERY_SETTING), expected);
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
    ("clients_together = 0", ":1: clients_together: ", &["1 to"]),
    ("maxmemory_clients = \"x%\"", ":1: maxmemory_clients: ", &["`x%`", "25%"]),
    ("max_dedicated = 0", ":1: max_dedicated: ", &["1 to"]),
    ("max_lanes = 1025", ":1: max_lanes: ", &["1 to 1024"]),
    ("heartbeat = \"0\"", ":1: heartbeat: ", &["1ms"]),
    ("heartbeat = \"1s\"", ":1: heartbeat: ", &["shorter than max_staleness (1s)"]),
    ("max_staleness = \"100ms\"", ":1: heartbeat: ", &["shorter than max_staleness (100ms)"]),
    ("upstream_timeout = \"50ms\"", ":1: heartbeat: ", &["shorter than upstream_timeout (50ms)"]),
    ("max_memory = \"2mb\"\nmax_entry = \"3mb\"", ":2: max_entry: ", &["max_memory (2mb)"]),
    ("client_query_buffer_limit = \"1mb\"", ":1: proto_max_bulk_len: ", &["raise client_query_buffer_limit"]),
    ("consistency = \"strong\"", ":1: consistency: ", &["`strong`", "bounded", "causal", "linearizable"]),
    ("script_keys = \"none\"", ":1: script_keys: ", &["any", "declared"]),
    ("log = \"inof\"", ":1: log: ", &["`inof`", "info"]),
    ("unixsocketperm = 888", ":1: unixsocketperm: ", &["`888`", "octal"]),
    ("unixsocketperm = \"1777\"", ":1: unixsocketperm: ", &["`1777`", "octal"]),
    ("[[listen]]\naddress = \"127.0.0.1:1\"\nunixsocketperm = 700", ":3: unixsocketperm: ", &["unix sockets"]),
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
    ("upstream = \"rediss://host/#insecure\"", ":1: upstream: ", &["behind `?`"]),
    ("\nupstream_tls_ca = \"/a\"", ":2: upstream_tls_ca: ", &["without TLS", "rediss://"]),
    ("upstream = \"redis://h\"\nupstream_tls_insecure = true", ":2: upstream_tls_insecure: ", &["without TLS"]),
    ("upstream_tls_insecure = \"maybe\"", ":1: upstream_tls_insecure: ", &["`maybe`", "true or false"]),
    ("upstream = \"rediss://h\"\nupstream_tls_cert = \"/a\"", ":2: upstream_tls_cert: ", &["upstream_tls_key"]),
    ("upstream = \"rediss://h\"\nupstream_tls_key = \"/a\"", ":2: upstream_tls_key: ", &["upstream_tls_cert"]),
    ("[[listen]]\naddress = \"a:1\"\ntls_cert = \"/a\"", ":3: tls_cert: ", &["tls_key"]),
    ("[[listen]]\naddress = \"a:1\"\ntls_key = \"/a\"", ":3: tls_key: ", &["tls_cert"]),
    ("[[listen]]\naddress = \"a:1\"\ntls_ca = \"/a\"", ":3: tls_ca: ", &["tls_cert", "in the clear"]),
    ("[[listen]]\naddress = \"a:1\"\ntls_auth_clients = \"yes\"", ":3: tls_auth_clients: ", &["tls_cert"]),
    ("[[listen]]\naddress = \"a:1\"\ntls_auth_clients = \"maybe\"", ":3: tls_auth_clients: ", &["optional"]),
    ("[[listen]]\naddress = \"unix:/a\"\ntls_cert = \"/a\"\ntls_key = \"/b\"", ":3: tls_cert: ", &["host:port"]),
    (
        "[[listen]]\naddress = \"a:1\"\ntls_cert = \"/a\"\ntls_key = \"/b\"\ntls_auth_clients = \"yes\"",
        ":5: tls_auth_clients: ",
        &["tls_ca"],
    ),
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

/// The door with TLS stands in the shipped file as a comment, because it needs files.
#[test]
fn the_shipped_door_with_tls_is_taken() {
    let shipped = shipped();
    let (_, door) = shipped.split_once("# [[listen]]").unwrap();
    let settings = door.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| line.contains(" = "));
    let text = format!("[[listen]]\n{}", settings.collect::<Vec<_>>().join("\n"));
    let tls = parse(&text).listen[0].tls.clone().unwrap();
    assert_eq!((tls.ca, tls.auth_clients), (Some("/etc/nearside/ca.crt".into()), AuthClients::Yes));
}

#[test]
fn who_names_a_ca_demands_certificates_unless_told_otherwise() {
    let door = |more: &str| format!("[[listen]]\naddress = \"a:1\"\ntls_cert = \"/a\"\ntls_key = \"/b\"\n{more}");
    let asks = |more: &str| parse(&door(more)).listen[0].tls.as_ref().unwrap().auth_clients;
    assert_eq!(asks(""), AuthClients::No);
    assert_eq!(asks("tls_ca = \"/ca\""), AuthClients::Yes);
    assert_eq!(asks("tls_ca = \"/ca\"\ntls_auth_clients = \"optional\""), AuthClients::Optional);
    assert_eq!(asks("tls_ca = \"/ca\"\ntls_auth_clients = \"no\""), AuthClients::No);
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
    for scheme in ["rediss", "valkeys"] {
        let secret = upstream(&format!("{scheme}://u:p@h/4"));
        assert_eq!((secret.address, secret.db), (Address::Tcp("h".into(), 6379), 4));
        assert_eq!((secret.username.as_deref(), secret.tls), (Some("u"), Some(UpstreamTls::default())));
    }
    for scheme in ["unix", "redis+unix"] {
        let unix = upstream(&format!("{scheme}:///run/r.sock?db=2&user=u&pass=p"));
        assert_eq!(unix.address, Address::Unix("/run/r.sock".into()));
        assert_eq!((unix.username.as_deref(), unix.password.as_deref(), unix.db), (Some("u"), Some("p"), 2));
    }
    assert_eq!(parse("upstream = \"embedded\"").upstream, None);
}

#[test]
fn no_message_shows_a_password() {
    let urls = ["redis://u:hunter2@h/x", "rediss://u:hunter2@h?x=1", "http://u:hunter2@h", "redis://u:hunter2@h:99999"];
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

#[test]
fn modes_that_do_not_fit_their_settings_are_refused() {
    let refused = |text: &str, words: &str| assert!(refusal(text).contains(words), "{}", refusal(text));
    refused("invalidation = \"bcast\"", "write \"auto\", \"tracked\"");
    refused("invalidation = \"keyspace\"", "proxy.toml:1: invalidation: \"keyspace\" misses FLUSHALL");
    refused(
        "\ninvalidation = \"broadcast\"\nbroadcast_prefixes = [\"a\", \"ab\"]",
        "proxy.toml:3: broadcast_prefixes: \"ab\"",
    );
    refused("invalidation = \"broadcast\"\nbroadcast_prefixes = [\"a\", \"a\"]", "leave it out");
    refused("invalidation = \"broadcast\"\nbroadcast_prefixes = [\"\"]", "an empty prefix is every key");
    refused("broadcast_prefixes = [\"a\"]", "needs invalidation = \"broadcast\"");
    refused("broadcast_prefixes = \"a\"", "proxy.toml:1");
    refused("invalidation = \"broadcast\"\nheartbeat = \"600ms\"", "needs two PINGs");
    assert_eq!(parse("invalidation = \"keyspace\"\nmax_ttl = \"1m\"").max_ttl, Duration::from_secs(60));
}
