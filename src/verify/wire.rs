//! One connection of a client: a pipeline out, its replies back.

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use redis::Value;

use crate::buffer::OutBuf;
use crate::config::{Upstream, UpstreamTls};
use crate::resp::{self, Cutter};
use crate::transport::{Endpoint, Stream};

/// A connection or an answer that takes longer is lost.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Where to connect to and as whom.
#[derive(Clone)]
pub struct Target {
    endpoint: Endpoint,
    upstream: Upstream,
}

impl Target {
    /// From `host:port` or an URL as in the setting `upstream`.
    pub fn parse(text: &str, ca: Option<&PathBuf>) -> Result<Target, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("redis://{text}") };
        let mut upstream: Upstream = url.parse()?;
        if upstream.tls.is_some() {
            upstream.tls = Some(UpstreamTls { ca: ca.cloned(), ..UpstreamTls::default() });
        }
        let endpoint = Endpoint::of(&upstream).map_err(|e| e.to_string())?;
        Ok(Target { endpoint, upstream })
    }

    /// There, as `upstream` says.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "the simulation's network"))]
    pub fn at(endpoint: Endpoint, upstream: Upstream) -> Target {
        Target { endpoint, upstream }
    }

    /// The address, without user and password.
    pub fn name(&self) -> String {
        self.endpoint.to_string()
    }
}

/// An open connection.
pub struct TestConnection {
    stream: Stream,
    input: BytesMut,
}

impl TestConnection {
    /// Connects and greets.
    pub async fn open(target: &Target, resp3: bool) -> io::Result<TestConnection> {
        let opening = async {
            let stream = Stream::connect(&target.endpoint, PATIENCE).await?;
            let mut connection = TestConnection { stream, input: BytesMut::new() };
            for command in greeting(&target.upstream, resp3) {
                if let Value::ServerError(e) = connection.reply_to(&command).await? {
                    return Err(io::Error::other(e.to_string()));
                }
            }
            Ok(connection)
        };
        tokio::time::timeout(PATIENCE, opening).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Asks one question. An error reply is a value.
    pub async fn call(&mut self, args: &[&str]) -> io::Result<Value> {
        let mut replies = self.pipeline(&[resp::encode(args)]).await?;
        replies.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends the commands at once and reads as many replies.
    pub async fn pipeline(&mut self, commands: &[Vec<u8>]) -> io::Result<Vec<Value>> {
        let exchange = async {
            self.send(&commands.concat()).await?;
            let mut replies = Vec::with_capacity(commands.len());
            while replies.len() < commands.len() {
                replies.push(self.reply().await?);
            }
            Ok(replies)
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn reply_to(&mut self, command: &[u8]) -> io::Result<Value> {
        self.send(command).await?;
        self.reply().await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = OutBuf::default();
        out.push(bytes);
        poll_fn(|cx| self.stream.poll_write(cx, &mut out)).await
    }

    async fn reply(&mut self) -> io::Result<Value> {
        let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
        let mut cutter = Cutter::default();
        loop {
            if let Some(len) = cutter.cut(&self.input).map_err(|e| invalid(e.to_string()))? {
                let frame = self.input.split_to(len);
                return redis::parse_redis_value(&frame).map_err(|e| invalid(e.to_string()));
            }
            if poll_fn(|cx| self.stream.poll_read(cx, &mut self.input, 4096)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn greeting(upstream: &Upstream, resp3: bool) -> Vec<Vec<u8>> {
    let user = upstream.username.as_deref().unwrap_or("default");
    let mut commands = Vec::new();
    if let Some(password) = &upstream.password {
        // a server from before ACLs knows no user
        let args = if user == "default" { vec!["AUTH", password] } else { vec!["AUTH", user, password] };
        commands.push(resp::encode(&args));
    }
    if resp3 {
        commands.push(resp::encode(&["HELLO", "3"]));
    }
    if upstream.db != 0 {
        commands.push(resp::encode(&["SELECT", &upstream.db.to_string()]));
    }
    commands
}

/// The text of an answer that is one.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Okay => Some("OK".into()),
        _ => None,
    }
}
