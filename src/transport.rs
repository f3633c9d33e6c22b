//! Sockets of both sides: TCP and unix, one type.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::buffer::OutBuf;
use crate::config::Address;

/// Idle time after which the kernel probes a silent peer.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// One connection.
pub enum Stream {
    /// TCP, without Nagle's delay.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Wraps an accepted or connected TCP socket.
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Stream::Tcp(stream))
    }

    /// Connects, in `limit` at the most.
    pub async fn connect(address: &Address, limit: Duration) -> io::Result<Stream> {
        let connect = async {
            match address {
                Address::Tcp(host, port) => Stream::tcp(TcpStream::connect((host.as_str(), *port)).await?),
                Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            }
        };
        match tokio::time::timeout(limit, connect).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"))),
        }
    }

    /// Reads what is there into `buf`'s spare room (of which it makes at least `room` bytes). `Ok(0)`: the peer is done.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut, room: usize) -> Poll<io::Result<usize>> {
        buf.reserve(room);
        let mut space = ReadBuf::uninit(buf.spare_capacity_mut());
        let poll = match self {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, &mut space),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, &mut space),
        };
        let n = space.filled().len();
        poll.map_ok(|()| {
            // SAFETY: `n` bytes of the spare capacity were filled by the read.
            unsafe { buf.advance_mut(n) };
            n
        })
    }

    /// Writes as much of `out` as the socket takes. Ready once all is written.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut OutBuf) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let written = {
                let mut slices = OutBuf::empty_slices();
                let n = out.slices(&mut slices);
                let slices = &slices[..n];
                match self {
                    Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
                    Stream::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
                }
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => out.advance(n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The two ends as CLIENT INFO shows them: (address of the peer, our own).
    pub fn names(&self) -> (String, String) {
        match self {
            Stream::Tcp(s) => {
                let name = |a: io::Result<std::net::SocketAddr>| a.map_or_else(|_| "?:0".into(), |a| a.to_string());
                (name(s.peer_addr()), name(s.local_addr()))
            }
            Stream::Unix(s) => {
                let path = s.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.display().to_string()));
                let path = path.unwrap_or_default();
                (format!("{path}:0"), format!("{path}:0"))
            }
        }
    }
}
