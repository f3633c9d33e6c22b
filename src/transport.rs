//! Sockets of both sides: TCP, unix, TLS, and pipes within the process, one type.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::buffer::{self, OutBuf};
use crate::config::{Address, ConfigError, Upstream};
use crate::tls;

/// Idle time after which the kernel probes a silent peer.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Bytes that a pipe within the process holds.
const PIPE: usize = 64 * 1024;
/// Room that is made at once for what has begun: its length is the peer's word, and need not be true.
const ROOM_AHEAD: usize = 64 << 20;

/// One connection.
pub enum Stream {
    /// TCP, without Nagle's delay.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<Tls>),
    /// A pipe within the process.
    Memory(DuplexStream),
}

/// Where the upstream is and how it is reached. Made once, so that its certificates are read once.
#[derive(Clone, Debug)]
pub struct Endpoint {
    place: Location,
    tls: Option<Arc<tls::Connector>>,
}

#[derive(Clone, Debug)]
enum Location {
    Address(Address),
    Memory { name: String, listener: mpsc::Sender<DuplexStream> },
}

impl Endpoint {
    /// The upstream's; fails if its certificates cannot be used.
    pub fn of(upstream: &Upstream) -> Result<Endpoint, ConfigError> {
        let place = Location::Address(upstream.address.clone());
        Ok(Endpoint { place, tls: tls::connector(upstream)?.map(Arc::new) })
    }

    /// Within this process: the reader of `listener` has the other end of each connection.
    #[cfg_attr(feature = "program", expect(dead_code, reason = "the simulation's network"))]
    pub fn memory(name: String, listener: mpsc::Sender<DuplexStream>) -> Endpoint {
        Endpoint { place: Location::Memory { name, listener }, tls: None }
    }
}

/// The address.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Location::Address(address) => address.fmt(f),
            Location::Memory { name, .. } => f.write_str(name),
        }
    }
}

/// TLS over TCP. What it takes it may keep: it is written only once it is flushed too.
pub struct Tls {
    stream: TlsStream<TcpStream>,
    flushed: bool,
}

impl Tls {
    fn started(stream: impl Into<TlsStream<TcpStream>>) -> Stream {
        Stream::Tls(Box::new(Tls { stream: stream.into(), flushed: true }))
    }

    /// A peer that goes without a goodbye has gone all the same: RESP frames say themselves where they end, so that
    /// nothing cut short can pass for whole.
    fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, space) {
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            other => other.map_err(explained),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.flushed = false;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.flushed = matches!(poll, Poll::Ready(Ok(())));
        poll
    }
}

/// Says goodbye, as far as the socket takes it without waiting: to some clients an end without it is an error.
impl Drop for Tls {
    fn drop(&mut self) {
        let _ = Pin::new(&mut self.stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }
}

/// A TLS error, marked as such and with its usual meaning.
fn explained(e: io::Error) -> io::Error {
    use tokio_rustls::rustls::{AlertDescription, Error, InvalidMessage};
    let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else { return e };
    let hint = match tls {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => " (the other side does not speak TLS)",
        Error::AlertReceived(AlertDescription::CertificateRequired) => " (it wants a client certificate)",
        _ => "",
    };
    io::Error::new(e.kind(), format!("TLS: {tls}{hint}"))
}

impl Stream {
    /// Has the kernel end it once what was sent has been unacknowledged for so long: whom a broken network keeps from
    /// closing it, or from answering, is gone all the same.
    pub fn give_up_after(&self, limit: Duration) -> io::Result<()> {
        let socket = match self {
            Stream::Tcp(s) => socket2::SockRef::from(s),
            Stream::Tls(tls) => socket2::SockRef::from(tls.stream.get_ref().0),
            Stream::Unix(_) | Stream::Memory(_) => return Ok(()),
        };
        socket.set_tcp_user_timeout(Some(limit))
    }

    /// Wraps an accepted or connected TCP socket.
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Stream::Tcp(stream))
    }

    /// Connects, TLS included, in `limit` at the most.
    pub async fn connect(to: &Endpoint, limit: Duration) -> io::Result<Stream> {
        let reached = Cell::new(false);
        let connect = async {
            let stream = match &to.place {
                Location::Address(Address::Tcp(host, port)) => {
                    Stream::tcp(TcpStream::connect((host.as_str(), *port)).await?)?
                }
                Location::Address(Address::Unix(path)) => Stream::Unix(UnixStream::connect(path).await?),
                Location::Memory { listener, .. } => Stream::pipe(listener)?,
            };
            reached.set(true);
            match (stream, &to.tls) {
                (Stream::Tcp(socket), Some(tls)) => {
                    let connector = TlsConnector::from(tls.config.clone());
                    connector.connect(tls.name.clone(), socket).await.map(Tls::started).map_err(explained)
                }
                (stream, _) => Ok(stream),
            }
        };
        match tokio::time::timeout(limit, connect).await {
            Ok(result) => result,
            // A Redis in the clear waits for the line that the handshake seems to begin.
            Err(_) if reached.get() => {
                Err(late(format!("no TLS handshake within {limit:?}: does it speak TLS there?")))
            }
            Err(_) => Err(late(format!("no connection within {limit:?}"))),
        }
    }

    fn pipe(listener: &mpsc::Sender<DuplexStream>) -> io::Result<Stream> {
        let (near, far) = tokio::io::duplex(PIPE);
        listener.try_send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Stream::Memory(near))
    }

    /// The server's side of a TLS handshake, in `limit` at the most.
    pub async fn accept_tls(self, config: Arc<ServerConfig>, limit: Duration) -> io::Result<Stream> {
        let Stream::Tcp(socket) = self else { return Ok(self) };
        match tokio::time::timeout(limit, TlsAcceptor::from(config).accept(socket)).await {
            Ok(result) => result.map(Tls::started).map_err(explained),
            Err(_) => Err(late(format!("no TLS handshake within {limit:?}"))),
        }
    }

    /// Reads more of something that `need`s so many bytes, as far as is known, into a buffer that is held only while there is
    /// something in it. `Ok(0)`: the peer is done.
    #[inline]
    pub fn poll_more(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut, need: usize) -> Poll<io::Result<usize>> {
        // The bytes read last are dealt with, and mostly nothing has come meanwhile: asking costs half of what a read does.
        if buf.is_empty() && buf.capacity() > 0 && self.poll_readable(cx).is_pending() {
            buffer::release(buf);
            return Poll::Pending;
        }
        buffer::equip(buf, need);
        let poll = self.poll_read(cx, buf, need.saturating_sub(buf.len()).clamp(1, ROOM_AHEAD));
        if poll.is_pending() {
            buffer::rest(buf);
        }
        poll
    }

    /// Pending: a read would be. A socket's error is left to the read, and TLS may have read more than it has handed out.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Stream::Tcp(s) => s.poll_read_ready(cx).map(|_| ()),
            Stream::Unix(s) => s.poll_read_ready(cx).map(|_| ()),
            Stream::Tls(_) | Stream::Memory(_) => Poll::Ready(()),
        }
    }

    /// Reads what is there into `buf`'s spare room (of which it makes at least `room` bytes). `Ok(0)`: the peer is done.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut, room: usize) -> Poll<io::Result<usize>> {
        buf.reserve(room);
        let mut space = ReadBuf::uninit(buf.spare_capacity_mut());
        let poll = match self {
            Stream::Tcp(s) => Pin::new(s).poll_read(cx, &mut space),
            Stream::Unix(s) => Pin::new(s).poll_read(cx, &mut space),
            Stream::Tls(s) => s.poll_read(cx, &mut space),
            Stream::Memory(s) => Pin::new(s).poll_read(cx, &mut space),
        };
        let n = space.filled().len();
        poll.map_ok(|()| {
            // SAFETY: `n` bytes of the spare capacity were filled by the read.
            unsafe { buf.advance_mut(n) };
            n
        })
    }

    /// Writes as much of `out` as the socket takes. Ready once all is written, which with TLS may take another call
    /// after `out` has become empty.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut OutBuf) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            // A plain send costs the kernel less than a list of one.
            let written = match out.as_one() {
                Some(slice) => self.poll_write_slice(cx, slice),
                None => self.poll_write_slices(cx, &out.slices()),
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => out.advance(n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        match self {
            Stream::Tls(s) => s.poll_flush(cx),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    /// Mostly a socket takes it at once; only if it does not, somebody must be woken.
    fn poll_write_slice(&mut self, cx: &mut Context<'_>, slice: &[u8]) -> Poll<io::Result<usize>> {
        let tried = match self {
            Stream::Tcp(s) => s.try_write(slice),
            Stream::Unix(s) => s.try_write(slice),
            Stream::Tls(_) | Stream::Memory(_) => Err(io::ErrorKind::WouldBlock.into()),
        };
        if !matches!(&tried, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            return Poll::Ready(tried);
        }
        match self {
            Stream::Tcp(s) => Pin::new(s).poll_write(cx, slice),
            Stream::Unix(s) => Pin::new(s).poll_write(cx, slice),
            Stream::Tls(s) => s.poll_write(cx, &[IoSlice::new(slice)]),
            Stream::Memory(s) => Pin::new(s).poll_write(cx, slice),
        }
    }

    fn poll_write_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Stream::Unix(s) => Pin::new(s).poll_write_vectored(cx, slices),
            Stream::Tls(s) => s.poll_write(cx, slices),
            Stream::Memory(s) => Pin::new(s).poll_write_vectored(cx, slices),
        }
    }

    /// Whether the kernel has all that was written.
    pub fn is_flushed(&self) -> bool {
        !matches!(self, Stream::Tls(s) if !s.flushed)
    }
}

fn late(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}
