//! A raw HTTP/2 client: it ends no request, reads no answer and resets streams as it likes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gatekey::api::MESSAGE_MAX;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time};
use tokio_util::task::AbortOnDropHandle;
use tonic::codegen::{Bytes, http};

/// Time to wait before a refused call is made again.
const AGAIN: Duration = Duration::from_secs(2);
/// A deadline for what a server that is well does at once.
const DEADLINE: Duration = Duration::from_secs(20);

/// One connection.
pub struct Raw {
    send: SendRequest<Bytes>,
    _driving: AbortOnDropHandle<()>,
}

impl Raw {
    /// Connects, and announces this receive window for each stream.
    pub async fn connect(addr: SocketAddr, window: u32) -> Result<Self, h2::Error> {
        let stream = TcpStream::connect(addr).await.map_err(h2_error)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        builder.initial_connection_window_size(16 * 1024 * 1024);
        builder.max_concurrent_reset_streams(10_000);
        let (send, driving) = builder.handshake(stream).await?;
        let driving = tokio::spawn(async move { drop(driving.await) });
        Ok(Self {
            send,
            _driving: AbortOnDropHandle::new(driving),
        })
    }

    /// Begins a call with these first bytes of its body. Waits until the server takes the stream.
    pub async fn open(
        &mut self,
        request: http::Request<()>,
        body: Option<Bytes>,
    ) -> Result<(ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        std::future::poll_fn(|cx| self.send.poll_ready(cx)).await?;
        let (answer, mut stream) = self.send.send_request(request, false)?;
        if let Some(body) = body {
            stream.send_data(body, false)?;
        }
        Ok((answer, stream))
    }

    /// Makes a whole call with one message, and returns its answer.
    pub async fn call(
        &mut self,
        request: http::Request<()>,
        message: &impl Message,
    ) -> Result<Answer, h2::Error> {
        let (answer, mut body) = self.open(request, None).await?;
        body.send_data(framed(message), true)?;
        Answer::read(answer).await
    }
}

fn h2_error(error: std::io::Error) -> h2::Error {
    drop(error);
    h2::Reason::CONNECT_ERROR.into()
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The number of the gRPC status code.
    pub code: i32,
    pub headers: http::HeaderMap,
}

impl Answer {
    /// Waits for an answer and reads it, within a deadline.
    pub async fn read(answer: ResponseFuture) -> Result<Self, h2::Error> {
        let read = async {
            let (head, mut body) = answer.await?.into_parts();
            while let Some(data) = body.data().await {
                let length = data?.len();
                body.flow_control().release_capacity(length)?;
            }
            let trailers = body.trailers().await?;
            let headers = trailers.unwrap_or(head.headers);
            let code = headers["grpc-status"].to_str().expect("it is text");
            Ok(Self {
                code: code.parse().expect("a number"),
                headers,
            })
        };
        let read = time::timeout(DEADLINE, read).await;
        read.expect("the call is answered in time")
    }

    /// Returns the status, with its details.
    pub fn status(&self) -> tonic::Status {
        tonic::Status::from_header_map(&self.headers).expect("a status")
    }
}

/// Returns the head of a call of `method`, such as `gatekey.v1.KeyService/Validate`.
pub fn request(addr: SocketAddr, method: &str, credential: Option<&str>) -> http::Request<()> {
    let mut request = http::Request::post(format!("http://{addr}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(credential) = credential {
        request = request.header("authorization", format!("Bearer {credential}"));
    }
    request.body(()).expect("a request")
}

/// Returns a message with its head of five bytes.
pub fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(
        u32::try_from(message.len())
            .expect("it is short")
            .to_be_bytes(),
    );
    framed.extend(message);
    framed.into()
}

/// Returns all but the last byte of the largest message.
pub fn unfinished() -> Bytes {
    let length = u32::try_from(MESSAGE_MAX).expect("it is short");
    let mut body = vec![0];
    body.extend(length.to_be_bytes());
    body.resize(5 + MESSAGE_MAX - 1, b'x');
    body.into()
}

/// A way to attack: so many connections with so many calls at once on each.
#[derive(Clone)]
pub struct Attack {
    pub addr: SocketAddr,
    pub connections: usize,
    pub streams: usize,
    /// The receive window of each stream.
    pub window: u32,
    pub head: Arc<dyn Fn() -> http::Request<()> + Send + Sync>,
    /// The pieces of the body that are sent, which do not end it.
    pub pieces: Vec<Bytes>,
    pub then: Then,
}

/// What the attacker does once the pieces are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Leaves the request unfinished.
    Hold,
    /// Ends the request, and reads no answer.
    End,
    /// Ends the request, and resets the stream when this has passed.
    Reset(Duration),
}

impl Attack {
    /// Attacks until it is dropped.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        for _ in 0..self.connections {
            let attack = self.clone();
            connections.spawn(async move {
                loop {
                    // It ends when the server closes the connection.
                    drop(attack.connection().await);
                    time::sleep(AGAIN).await;
                }
            });
        }
        connections.join_all().await;
    }

    async fn connection(&self) -> Result<(), h2::Error> {
        let mut raw = Raw::connect(self.addr, self.window).await?;
        let places = Arc::new(Semaphore::new(self.streams));
        let mut calls = JoinSet::new();
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.expect("it is open");
            let (answer, mut stream) = raw.open((self.head)(), None).await?;
            let attack = self.clone();
            calls.spawn(async move {
                let _place = place;
                for piece in attack.pieces {
                    if stream.send_data(piece, false).is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                attack.then.go_on(answer, stream).await;
            });
            while calls.try_join_next().is_some() {}
        }
    }
}

impl Then {
    async fn go_on(self, answer: ResponseFuture, mut stream: h2::SendStream<Bytes>) {
        if self != Self::Hold {
            // Refused already where it fails.
            drop(stream.send_data(Bytes::new(), true));
        }
        if let Self::Reset(after) = self {
            time::sleep(after).await;
            stream.send_reset(h2::Reason::CANCEL);
            return;
        }
        let Ok(answer) = answer.await else {
            return time::sleep(AGAIN).await;
        };
        if answer.headers().contains_key("grpc-status") {
            return time::sleep(AGAIN).await;
        }
        // Its window is never opened again: what does not fit waits in the server.
        let mut body = answer.into_body();
        while let Some(Ok(_)) = body.data().await {}
    }
}
