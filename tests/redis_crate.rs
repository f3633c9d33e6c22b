//! The `redis` crate at real work through the proxy: synchronous, asynchronous, RESP3, and with a connection that comes
//! back by itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod servers;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use servers::{Process, start};

use redis::aio::ConnectionManagerConfig;
use redis::{AsyncCommands, Client, Commands, PushKind, Script, Value};

/// A server, and a proxy in front of it.
struct Site {
    _server: Process,
    _folder: tempfile::TempDir,
    server_port: u16,
    proxy: Option<Process>,
    port: u16,
}

impl Site {
    fn new() -> Site {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (server_port, port) = (free(), free());
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap();
        let args = ["--port", &server_port.to_string(), "--save", "", "--dir", dir];
        let server = start("redis-server", &args, server_port);
        let mut site = Site { _server: server, _folder: folder, server_port, proxy: None, port };
        site.start_proxy();
        site
    }

    fn start_proxy(&mut self) {
        let upstream = format!("redis://127.0.0.1:{}/0", self.server_port);
        let listen = format!("127.0.0.1:{}", self.port);
        let args = ["--listen", &listen, "--upstream", &upstream, "--log", "error"];
        self.proxy = Some(start(env!("CARGO_BIN_EXE_nearside"), &args, self.port));
    }

    fn client(&self, options: &str) -> Client {
        Client::open(format!("redis://127.0.0.1:{}/{options}", self.port)).unwrap()
    }
}

#[test]
fn synchronous_pipelines_transactions_and_scripts() {
    let site = Site::new();
    for options in ["", "1", "?protocol=resp3"] {
        let mut conn = site.client(options).get_connection().unwrap();
        let (n, list): (i64, Vec<String>) = redis::pipe()
            .incr("n", 5)
            .rpush("list", &["a", "b"])
            .ignore()
            .lrange("list", 0, -1)
            .query(&mut conn)
            .unwrap();
        assert_eq!((n, list), (5, vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(conn.get::<_, i64>("n").unwrap(), 5);
        let (new,): (i64,) = redis::transaction(&mut conn, &["n"], |conn, pipe| {
            let old: i64 = conn.get("n")?;
            pipe.set("n", old * 2).ignore().get("n").query(conn)
        })
        .unwrap();
        assert_eq!(new, 10);
        let script = Script::new("redis.call('set', KEYS[1], ARGV[1]) return redis.call('incr', KEYS[1])");
        for i in 0..20 {
            assert_eq!(script.key("n").arg(i).invoke::<i64>(&mut conn).unwrap(), i + 1);
            assert_eq!(conn.get::<_, i64>("n").unwrap(), i + 1, "what the script wrote is read back");
        }
        conn.hset_multiple::<_, _, _, ()>("hash", &[("f", 1), ("g", 2)]).unwrap();
        let hash: std::collections::BTreeMap<String, i64> = conn.hgetall("hash").unwrap();
        assert_eq!(hash.into_iter().collect::<Vec<_>>(), [("f".to_owned(), 1), ("g".to_owned(), 2)]);
        let mut keys: Vec<String> = conn.scan().unwrap().map(Result::unwrap).collect();
        keys.sort();
        assert_eq!(keys, ["hash", "list", "n"]);
        assert_eq!(conn.get::<_, Option<String>>("list").unwrap_err().code(), Some("WRONGTYPE"));
        redis::cmd("FLUSHDB").exec(&mut conn).unwrap();
    }
}

#[test]
fn a_synchronous_subscriber_hears_and_unsubscribes() {
    let site = Site::new();
    let mut listener = site.client("").get_connection().unwrap();
    let mut speaker = site.client("").get_connection().unwrap();
    {
        let mut pubsub = listener.as_pubsub();
        pubsub.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        pubsub.subscribe("news").unwrap();
        pubsub.psubscribe("new*").unwrap();
        assert_eq!(speaker.publish::<_, _, i64>("news", "hello").unwrap(), 2);
        let heard: Vec<String> = (0..2).map(|_| pubsub.get_message().unwrap().get_payload().unwrap()).collect();
        assert_eq!(heard, ["hello", "hello"]);
    }
    // dropped, so unsubscribed: the connection is an ordinary one again
    assert_eq!(speaker.publish::<_, _, i64>("news", "anybody").unwrap(), 0);
    assert_eq!(redis::cmd("PING").query::<String>(&mut listener).unwrap(), "PONG");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn many_tasks_share_one_multiplexed_connection() {
    let site = Site::new();
    runtime().block_on(async {
        for options in ["", "?protocol=resp3"] {
            let conn = site.client(options).get_multiplexed_async_connection().await.unwrap();
            let tasks: Vec<_> = (0..50)
                .map(|i| {
                    let mut conn = conn.clone();
                    tokio::spawn(async move {
                        for round in 0..20 {
                            conn.set::<_, _, ()>(format!("k{i}"), round).await.unwrap();
                            assert_eq!(conn.get::<_, i64>(format!("k{i}")).await.unwrap(), round);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let mut conn = conn;
            let (a, b): (i64, i64) =
                redis::pipe().atomic().incr("a", 1).incr("a", 1).query_async(&mut conn).await.unwrap();
            assert_eq!(b, a + 1);
        }
    });
}

#[test]
fn resp3_pushes_come_on_the_same_connection() {
    let site = Site::new();
    runtime().block_on(async {
        let (sender, mut pushes) = tokio::sync::mpsc::unbounded_channel();
        let config = redis::AsyncConnectionConfig::new().set_push_sender(sender);
        let client = site.client("?protocol=resp3");
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        let mut other = site.client("").get_multiplexed_async_connection().await.unwrap();
        conn.subscribe("news").await.unwrap();
        assert_eq!(other.publish::<_, _, i64>("news", "hello").await.unwrap(), 1);
        // commands go on beside the subscription
        conn.set::<_, _, ()>("k", 1).await.unwrap();
        assert_eq!(conn.get::<_, i64>("k").await.unwrap(), 1);
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").exec_async(&mut conn).await.unwrap();
        assert_eq!(conn.get::<_, i64>("k").await.unwrap(), 1);
        other.set::<_, _, ()>("k", 2).await.unwrap();
        let mut kinds = Vec::new();
        while !kinds.contains(&PushKind::Invalidate) {
            let push = tokio::time::timeout(Duration::from_secs(10), pushes.recv()).await.unwrap().unwrap();
            if push.kind == PushKind::Message {
                assert_eq!(push.data[1], Value::BulkString(b"hello".to_vec()));
            }
            kinds.push(push.kind);
        }
        assert_eq!(kinds, [PushKind::Subscribe, PushKind::Message, PushKind::Invalidate]);
        assert_eq!(conn.get::<_, i64>("k").await.unwrap(), 2);
    });
}

#[test]
fn a_connection_manager_comes_back_when_the_proxy_does() {
    let mut site = Site::new();
    runtime().block_on(async {
        let config =
            ConnectionManagerConfig::new().set_response_timeout(Some(Duration::from_secs(5))).set_number_of_retries(20);
        let mut conn = site.client("").get_connection_manager_with_config(config).await.unwrap();
        conn.set::<_, _, ()>("k", "before").await.unwrap();
        site.proxy = None;
        assert!(conn.get::<_, String>("k").await.is_err(), "nobody is there");
        site.start_proxy();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match conn.get::<_, String>("k").await {
                Ok(value) => break assert_eq!(value, "before"),
                Err(e) => assert!(Instant::now() < deadline, "it does not come back: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        conn.set::<_, _, ()>("k", "after").await.unwrap();
        assert_eq!(conn.get::<_, String>("k").await.unwrap(), "after");
    });
}
