//! Detects the protocol of a client from the first bytes of its connection.
//!
//! An HTTP/1 client receives one line that names the protocol of this port, instead of a reset.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    task::coop,
    time::{self, Sleep},
};

use super::authority::AuthorityFilter;

/// The connection preface of HTTP/2 clients (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS record that holds a ClientHello (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// Maximum length of an HTTP/1 method that is recognized, including its space.
const METHOD_MAX: usize = 8;
/// Maximum time for reading remaining client data after an orderly end of the connection.
const LINGER: Duration = Duration::from_secs(1);

/// Number of bytes that count as one operation of the task. The runtime allows 128 operations in a
/// turn, so a client that sends at full speed does not block the others of its thread.
const BYTES_PER_OPERATION: usize = 1024;

/// The protocol of the port, which selects the response to clients of another protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaks {
    Plaintext,
    Tls,
}

/// The protocol of a client that does not speak HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Other {
    Http1,
    Tls,
    Unknown,
}

impl From<Other> for io::Error {
    fn from(other: Other) -> Self {
        let what = match other {
            Other::Http1 => "the client speaks HTTP/1",
            Other::Tls => "the client speaks TLS to a port without TLS",
            Other::Unknown => "the client does not speak HTTP/2",
        };
        Self::new(io::ErrorKind::InvalidData, what)
    }
}

/// A stream whose client has sent the HTTP/2 preface. hyper would wait for it without a timeout.
pub struct Prefaced<T> {
    /// Number of preface bytes that hyper has read.
    read: usize,
    stream: T,
    authority: AuthorityFilter,
    /// Set when the client sends any data.
    heard: Arc<AtomicBool>,
    /// Limits the wait for the client to end its side, once this side has ended.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Prefaced<T> {
    /// Reads the preface.
    ///
    /// # Errors
    /// `InvalidData` if the client speaks another protocol. An HTTP/1 client receives its response
    /// first.
    pub async fn read(mut stream: T, speaks: Speaks) -> io::Result<Self> {
        match read_preface(&mut stream).await? {
            None => Ok(Self {
                read: 0,
                stream,
                authority: AuthorityFilter::default(),
                heard: Arc::default(),
                linger: None,
            }),
            Some(other) => {
                if other == Other::Http1 {
                    answer_http1(&mut stream, speaks).await?;
                }
                Err(other.into())
            }
        }
    }

    pub fn stream(&self) -> &T {
        &self.stream
    }

    /// Returns a flag that is set whenever the client sends any data.
    pub fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }
}

/// Waits for the first byte of a connection to a TLS port, and leaves it unread.
///
/// # Errors
/// `InvalidData` if the byte does not begin a handshake. An HTTP/1 client receives its response
/// first.
pub async fn expect_tls(stream: &mut TcpStream) -> io::Result<()> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] == TLS_HANDSHAKE {
        return Ok(());
    }
    let other = read_preface(stream).await?;
    if other == Some(Other::Http1) {
        answer_http1(stream, Speaks::Tls).await?;
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the client does not speak TLS",
    ))
}

/// Reads the preface. Returns `None` if it is complete, or the other protocol as soon as it is
/// detected.
async fn read_preface<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Option<Other>> {
    let mut bytes = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() {
        let read = stream.read(&mut bytes[length..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += read;
        if let Some(other) = other(&bytes[..length]) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Detects the protocol of bytes that do not begin the preface. Returns `None` while they do, or
/// while there are too few bytes to decide.
fn other(bytes: &[u8]) -> Option<Other> {
    if PREFACE.starts_with(bytes) {
        return None;
    }
    if bytes[0] == TLS_HANDSHAKE {
        return Some(Other::Tls);
    }
    let method = &bytes[..bytes.len().min(METHOD_MAX)];
    let letters = method.iter().take_while(|byte| byte.is_ascii_uppercase());
    match method.get(letters.count()) {
        Some(b' ') if method[0] != b' ' => Some(Other::Http1),
        None if method.len() < METHOD_MAX => None,
        _ => Some(Other::Unknown),
    }
}

/// Answers an HTTP/1 request, regardless of its content, and ends the connection.
async fn answer_http1<T: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut T,
    speaks: Speaks,
) -> io::Result<()> {
    let (tls, option) = match speaks {
        Speaks::Plaintext => ("without TLS", " -plaintext"),
        Speaks::Tls => ("with TLS", ""),
    };
    let line = format!(
        "This port speaks gRPC over HTTP/2 {tls}, not HTTP/1. Use a gRPC client, for example: \
         grpcurl{option} HOST:PORT list\n"
    );
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{line}",
        line.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing a socket with unread data resets the connection, and the client may lose the
    // response.
    let mut unread = [0; 1024];
    let read = async { while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {} };
    let _ = time::timeout(LINGER, read).await;
    Ok(())
}

/// Consumes the task's cooperative budget for this many bytes, in addition to the operation that
/// read them.
fn take_turns(bytes: usize, cx: &mut Context<'_>) {
    for _ in 0..bytes / BYTES_PER_OPERATION {
        match coop::poll_proceed(cx) {
            Poll::Ready(turn) => turn.made_progress(),
            Poll::Pending => return,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefaced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read == PREFACE.len() {
            let before = to.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, to))?;
            self.heard.store(true, Ordering::Relaxed);
            let new = &mut to.filled_mut()[before..];
            take_turns(new.len(), cx);
            self.authority.filter(new);
            return Poll::Ready(Ok(()));
        }
        let rest = &PREFACE[self.read..];
        let length = rest.len().min(to.remaining());
        to.put_slice(&rest[..length]);
        self.read += length;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Prefaced<T> {
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

    /// Ends this side, and reads until the client has ended its own. Closing the socket with unread
    /// data would reset the connection, and the client would lose the calls that it is to retry
    /// elsewhere.
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
            let read = ready!(pin!(&mut this.stream).poll_read(cx, &mut to));
            if read.is_err() || to.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_begin_the_preface_is_recognized() {
        for (bytes, want) in [
            (&b"P"[..], None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
            (b"PO", None),
            (b"POST ", Some(Other::Http1)),
            (b"GET / HTTP/1.1\r\n", Some(Other::Http1)),
            (b"OPTIONS * HTTP/1.1", Some(Other::Http1)),
            (b"PRI * HTTP/1.1", Some(Other::Http1)),
            (b"\x16\x03\x01", Some(Other::Tls)),
            (b"GET", None),
            (b" GET", Some(Other::Unknown)),
            (b"get /", Some(Other::Unknown)),
            (b"ABCDEFGH", Some(Other::Unknown)),
            (b"\0", Some(Other::Unknown)),
        ] {
            assert_eq!(other(bytes), want, "{}", bytes.escape_ascii());
        }
    }
}
