//! Serves one connection, from its first byte to its last.
//!
//! A connection ends gracefully (GOAWAY; calls in flight finish) when it reaches its maximum age,
//! has been idle too long, is evicted in favour of another one, or the server stops. It is cut only
//! if its client does not complete the preface, does not react to GOAWAY while no stream is open,
//! or is gone when the server stops, or if it is evicted a second time.

use std::{
    error::Error,
    future::pending,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body::Body;
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    admission::{Admitted, Closed},
    config::Config,
    preface::{Prefaced, Speaks},
    streams::{Bounded, Budget},
};
use crate::api::StreamExecutor;

/// Timeout of the TLS handshake and the HTTP/2 preface of a new connection.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of concurrent calls on one connection.
const STREAMS_MAX: u32 = 128;
/// Number of request bytes that a client may send before they are read, on one stream and on all
/// streams of a connection. They bound what a connection can make the server buffer.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;
/// Maximum number of response bytes buffered for one stream while the client does not read.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// Maximum size of a header list in bytes. The HTTP/2 library answers a longer list with 431, and
/// ends the connection at four times this size.
const HEADER_LIST_MAX: u32 = 128 * 1024;
/// Interval of pings, and timeout of their acknowledgement.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a client without an open stream to react to GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// A client that sends nothing for this long when the server stops, not even a ping
/// acknowledgement, counts as gone.
const GONE_AFTER: Duration = PING_TIMEOUT;
/// The range of the random factor of the maximum age, so that clients that connected at the same
/// time do not reconnect at the same time.
const AGE_JITTER: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// The connection rules of one port.
#[derive(Clone)]
pub struct Rules {
    /// Approximate age at which a connection ends.
    age: Duration,
    /// Maximum time without an open stream.
    idle: Duration,
    /// Cancelled when the server stops. Connections then end as soon as their calls have ended.
    pub stop: CancellationToken,
    /// The protocol of the port, which selects the response to clients of another protocol.
    speaks: Speaks,
}

impl Rules {
    pub fn new(config: &Config, idle: Duration, speaks: Speaks, stop: &CancellationToken) -> Self {
        Self {
            age: config.max_connection_age,
            idle,
            stop: stop.clone(),
            speaks,
        }
    }
}

/// Serves a connection to its end. `secure` returns the stream to read and write, encrypted or not;
/// `service` returns the service for that stream.
///
/// # Errors
/// Fails if the connection breaks, its client does not speak HTTP/2, or `secure` fails.
pub async fn serve<T, S, B>(
    stream: TcpStream,
    mut admitted: Admitted,
    secure: impl AsyncFnOnce(TcpStream, Instant) -> io::Result<T>,
    service: impl FnOnce(&T) -> S,
    rules: &Rules,
    budget: Budget,
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
    let until = Instant::now() + PREFACE_TIMEOUT;
    let preface = async { Prefaced::read(secure(stream, until).await?, rules.speaks).await };
    // Boxed because a handshake has a large state, and a connection may be long-lived.
    let Some(stream) = greet(Box::pin(preface), &mut admitted, until, rules).await? else {
        return Ok(());
    };
    let heard = stream.heard();
    let service = Bounded::new(service(stream.stream()), admitted.counter(), budget);
    let connection = http2::Builder::new(StreamExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let why = tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        why = end(&admitted, rules) => why,
    };
    admitted.closed(why);
    heard.store(false, Ordering::Relaxed);
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => ended.map_err(io::Error::other),
        () = cut(&admitted, rules, &heard) => Ok(()),
    }
}

/// Waits for the preface. Returns `None` if the connection is closed before, for a reason other
/// than its client.
async fn greet<T>(
    preface: impl Future<Output = io::Result<T>>,
    admitted: &mut Admitted,
    until: Instant,
    rules: &Rules,
) -> io::Result<Option<T>> {
    let (why, result) = tokio::select! {
        read = time::timeout_at(until, preface) => match read {
            Ok(Ok(read)) => {
                admitted.greeted();
                return Ok(Some(read));
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                debug!(%error, "a connection was closed");
                (Closed::Protocol, Err(error))
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => (Closed::Preface, Err(error)),
            Ok(Err(error)) => (Closed::Client, Err(error)),
            Err(_) => (Closed::Preface, Err(io::ErrorKind::TimedOut.into())),
        },
        () = admitted.evicted() => (Closed::Evicted, Ok(None)),
        () = rules.stop.cancelled() => (Closed::Stop, Ok(None)),
    };
    admitted.closed(why);
    result
}

/// Waits until there is a reason to end the connection gracefully.
async fn end(admitted: &Admitted, rules: &Rules) -> Closed {
    let idle = async {
        while let left = rules
            .idle
            .saturating_sub(admitted.idle().unwrap_or_default())
            && !left.is_zero()
        {
            time::sleep(left).await;
        }
    };
    tokio::select! {
        () = time::sleep(rules.age.mul_f64(rand::random_range(AGE_JITTER))) => Closed::Age,
        () = idle => Closed::Idle,
        () = admitted.evicted() => Closed::Evicted,
        () = rules.stop.cancelled() => Closed::Stop,
    }
}

/// Waits until a connection that is ending gracefully may be cut.
async fn cut(admitted: &Admitted, rules: &Rules, heard: &Arc<AtomicBool>) {
    let unused = async {
        time::sleep(GOAWAY_TIMEOUT).await;
        while admitted.idle().is_none_or(|idle| idle < GOAWAY_TIMEOUT) {
            time::sleep(GOAWAY_TIMEOUT).await;
        }
    };
    let gone = async {
        rules.stop.cancelled().await;
        time::sleep(GONE_AFTER).await;
        if heard.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    };
    tokio::select! {
        () = unused => {}
        () = gone => {}
        () = admitted.evicted() => {}
    }
}
