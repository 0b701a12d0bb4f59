//! The first bytes of a connection: which protocol its client speaks.
//!
//! A client of HTTP/1 gets one line that says what this port speaks, instead of a reset.

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

/// What a client of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS record that holds a ClientHello (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The longest method of HTTP/1 that is recognized, its space included.
const METHOD_MAX: usize = 8;
/// How long a connection that has ended in order is read for what the client still sends.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that count as one operation of the task, of which the runtime allows 128 in a turn: so a
/// client that sends as fast as it can does not keep the others of its thread waiting.
const BYTES_PER_OPERATION: usize = 1024;

/// What the port speaks, which decides what a client of another protocol is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaks {
    Plaintext,
    Tls,
}

/// What a client speaks that is not HTTP/2.
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

/// A stream whose client has sent the preface of HTTP/2. hyper would wait for it without a limit.
pub struct Prefaced<T> {
    /// How much of the preface hyper has read.
    read: usize,
    stream: T,
    authority: AuthorityFilter,
    /// Set when the client sends anything.
    heard: Arc<AtomicBool>,
    /// Until when the client's own end of the connection is waited for, once this one has ended.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Prefaced<T> {
    /// Reads the preface.
    ///
    /// # Errors
    /// `InvalidData` when the client speaks another protocol, once a client of HTTP/1 has got its
    /// answer.
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

    /// Returns a flag that is set whenever the client sends anything.
    pub fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }
}

/// Waits for the first byte of a connection to a port that speaks TLS, and leaves it unread.
///
/// # Errors
/// `InvalidData` when it does not begin a handshake, once a client of HTTP/1 has got its answer.
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

/// Reads the preface, as far as the client sends it: `None` if it is complete.
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

/// Recognizes what does not begin the preface; `None` as long as it does, or too little is known.
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

/// Answers a request of HTTP/1, whatever it asks for, and ends the connection.
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
    // What is unread when a socket is closed resets the connection, and the answer may be lost.
    let mut unread = [0; 1024];
    let read = async { while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {} };
    let _ = time::timeout(LINGER, read).await;
    Ok(())
}

/// Uses up a part of the task's turn for so many bytes, beside the operation that read them.
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

    /// Ends this side, and reads until the client has ended its own. If the socket were closed with
    /// something unread, the connection would be reset, and with it the client's calls that it is to
    /// make again elsewhere.
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
