//! One connection, from its first byte to its last.
//!
//! Here is what tonic has no limit for: how long a connection may take to say that it speaks
//! HTTP/2, and how old it gets. None is ever cut because of its age: its client is told to make
//! another one (GOAWAY), and the calls in flight finish. At the stop one is cut whose client is gone.

use std::{
    error::Error,
    future::pending,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::Body;
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{self, Instant, Sleep},
};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use crate::grpc::StreamExecutor;

/// How long a new connection may take to say that it speaks HTTP/2, the handshake of TLS among it.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
/// What it says then (RFC 9113, 3.4) has so many bytes.
const PREFACE_LENGTH: usize = 24;
/// The most calls at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// A peer that does not answer a ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that says nothing for this long when everything stops, not even to a ping, is gone.
const FAREWELL_PATIENCE: Duration = PING_TIMEOUT;
/// How long a connection that has ended in order is kept for what the client has still to say.
const LINGER: Duration = Duration::from_secs(3);
/// The most that a call's headers may have, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;
/// By how much the ages of connections differ from what is set, so that clients that came together
/// do not come back together.
const AGE_JITTER: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// How long a connection lasts.
#[derive(Clone)]
pub struct Term {
    /// About how old it gets.
    age: Duration,
    /// When it is cancelled, the connection ends as soon as the calls in flight have.
    pub stop: CancellationToken,
}

impl Term {
    /// As the settings say, until `stop`.
    pub fn new(config: &Config, stop: &CancellationToken) -> Self {
        Self {
            age: config.max_connection_age,
            stop: stop.clone(),
        }
    }

    /// What a greeting comes to; `None` when everything stops before.
    async fn in_time<T>(
        &self,
        greeting: impl Future<Output = io::Result<T>>,
        until: Instant,
    ) -> io::Result<Option<T>> {
        let greeting = time::timeout_at(until, greeting);
        match self.stop.run_until_cancelled(greeting).await {
            None => Ok(None),
            Some(Ok(greeted)) => greeted.map(Some),
            Some(Err(_)) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Serves a connection to its end. `secure` makes of it, until then, what is read and written;
/// `service` is made for that.
///
/// It ends when the client goes, it is old, or everything stops; calls in flight are finished.
///
/// # Errors
/// When the connection breaks, its client does not speak HTTP/2, or `secure` fails.
pub async fn serve<T, S, B>(
    stream: TcpStream,
    secure: impl AsyncFnOnce(TcpStream, Instant) -> io::Result<T>,
    service: impl FnOnce(&T) -> S,
    term: &Term,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    stream.set_nodelay(true)?;
    let until = Instant::now() + GREETING_PATIENCE;
    let greeting = async { Greeted::by(secure(stream, until).await?).await };
    // Apart, for a handshake has much to carry, and a connection may last.
    let Some(stream) = term.in_time(Box::pin(greeting), until).await? else {
        return Ok(());
    };
    let service = service(&stream.stream);
    let heard = Arc::clone(&stream.heard);
    let connection = http2::Builder::new(StreamExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let age = term.age.mul_f64(rand::random_range(AGE_JITTER));
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        () = time::sleep(age) => {}
        () = term.stop.cancelled() => {}
    }
    heard.store(false, Ordering::Relaxed);
    connection.as_mut().graceful_shutdown();
    let gone = async {
        term.stop.cancelled().await;
        time::sleep(FAREWELL_PATIENCE).await;
        if heard.load(Ordering::Relaxed) {
            // It has answered the ping: its calls are waited for.
            pending::<()>().await;
        }
    };
    tokio::select! {
        ended = connection => ended.map_err(io::Error::other),
        () = gone => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A stream whose client has said as much as a preface has: hyper would wait for it without end.
struct Greeted<T> {
    preface: [u8; PREFACE_LENGTH],
    /// How much of the preface hyper has read.
    read: usize,
    stream: T,
    /// Set when the client says anything.
    heard: Arc<AtomicBool>,
    /// Until when the client's own end of the connection is waited for, once this one has ended.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> Greeted<T> {
    async fn by(mut stream: T) -> io::Result<Self> {
        let mut preface = [0; PREFACE_LENGTH];
        stream.read_exact(&mut preface).await?;
        Ok(Self {
            preface,
            read: 0,
            stream,
            heard: Arc::default(),
            linger: None,
        })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Greeted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read == PREFACE_LENGTH {
            let read = Pin::new(&mut self.stream).poll_read(cx, to);
            if read.is_ready() {
                self.heard.store(true, Ordering::Relaxed);
            }
            return read;
        }
        let rest = &self.preface[self.read..];
        let length = rest.len().min(to.remaining());
        to.put_slice(&rest[..length]);
        self.read += length;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Greeted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends this side, and reads on until the client has ended its own: closed before, with something
    /// unread, a connection is reset, and the client's calls with it that it was told to make again.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let linger = this
            .linger
            .get_or_insert_with(|| Box::pin(time::sleep(LINGER)));
        if linger.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut unread = [0; 1024];
        loop {
            let mut to = ReadBuf::new(&mut unread);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut to));
            if read.is_err() || to.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
