//! A fast path for decoding and encoding hot calls; tonic handles unusual requests.
//!
//! tonic reads each request through a boxed body and a buffer of 8 KiB, and writes each response
//! through another. The request of a hot call is usually one short message in one frame. This module
//! decodes it in place and writes the response to one small buffer. Any other request (split,
//! compressed, too large, or not a message) is passed unchanged to tonic, which accepts or rejects
//! it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::{Message, bytes::Bytes};
use tonic::{
    Status,
    body::Body,
    codegen::http::{self, HeaderMap, HeaderValue, header::CONTENT_TYPE},
    metadata::GRPC_CONTENT_TYPE,
};

use crate::api::{
    MESSAGE_MAX, caller::Connection, hot_call::Encode, middleware::budget::Class,
    middleware::outgoing::Outgoing, middleware::stall,
};

/// Length in bytes of a message's prefix: the compression flag and the message length.
pub(in crate::api) const HEAD: usize = 5;
/// Maximum number of responses per connection that may wait to be sent without a stall timeout.
/// Their trailers are queued with the message, which saves a write.
const UNREAD_MAX: usize = 64;
/// Maximum size in bytes of a response that may wait without a stall timeout.
const ANSWER_SMALL: usize = 4 * 1024;

/// The part of a body that has arrived.
pub(in crate::api) enum Arrived<M, B: HttpBody> {
    /// Exactly one whole message in one frame.
    Message(M),
    /// Any other body, without loss of data.
    Other(Again<B>),
}

/// Decodes the part of a request's body that has already arrived, without waiting.
pub(in crate::api) async fn arrived<M, B>(headers: &HeaderMap, mut body: B) -> Arrived<M, B>
where
    M: Message + Default,
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut read = VecDeque::new();
    let usual = !headers.contains_key("grpc-encoding");
    if usual && let Poll::Ready(Some(first)) = now(&mut body).await {
        let message = first.as_ref().ok().and_then(message::<M>);
        let ended = message.is_some() && (body.is_end_stream() || ends(&mut body, &mut read).await);
        match message {
            Some(message) if ended => return Arrived::Message(message),
            _ => read.push_front(first),
        }
    }
    Arrived::Other(Again::new(read, body))
}

/// Waits for the first frame of a body, and returns the whole body.
pub(in crate::api) async fn begun<B: HttpBody + Unpin>(mut body: B) -> Again<B> {
    let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    Again::new(first.into_iter().collect(), body)
}

/// Returns the next frame if it has arrived.
async fn now<B: HttpBody + Unpin>(body: &mut B) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await
}

/// Returns true if the body is known to end here. Appends a frame that follows to `read`.
async fn ends<B: HttpBody + Unpin>(
    body: &mut B,
    read: &mut VecDeque<Result<Frame<B::Data>, B::Error>>,
) -> bool {
    let Poll::Ready(next) = now(body).await else {
        return false;
    };
    read.extend(next);
    read.is_empty()
}

/// Decodes a frame that is one whole, uncompressed message.
fn message<M: Message + Default>(frame: &Frame<Bytes>) -> Option<M> {
    let data = frame.data_ref()?;
    let (head, message) = data.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let whole = head[0] == 0 && length == message.len() && length <= MESSAGE_MAX;
    // The codec rejects a malformed message, with an error that does not repeat its content.
    whole.then(|| M::decode(data.slice(HEAD..)).ok())?
}

pin_project! {
    /// A body that first yields the frames that were already read.
    pub(in crate::api) struct Again<B: HttpBody> {
        read: VecDeque<Result<Frame<B::Data>, B::Error>>,
        #[pin]
        body: B,
    }
}

impl<B: HttpBody> Again<B> {
    pub(in crate::api) fn new(read: VecDeque<Result<Frame<B::Data>, B::Error>>, body: B) -> Self {
        Self { read, body }
    }
}

impl<B: HttpBody> HttpBody for Again<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        match this.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => this.body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.body.is_end_stream()
    }
}

/// Encodes the response to a call on this connection.
pub(in crate::api) fn write<A: Encode>(
    answer: Result<A, Status>,
    connection: Arc<Connection>,
) -> http::Response<Reply> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return status.into_http::<Body>().map(Reply::tonic),
    };
    let mut data = answer.framed();
    // A response contains one key, which was created by one message of at most 64 KiB.
    let length = u32::try_from(data.len() - HEAD).unwrap_or(u32::MAX);
    data[1..HEAD].copy_from_slice(&length.to_be_bytes());
    let unread = connection.unread.fetch_add(1, Ordering::Relaxed);
    let small = unread < UNREAD_MAX && data.len() <= ANSWER_SMALL;
    let reply = Reply::Message {
        data: Some(Bytes::from_owner(Unread { data, connection })),
        ended: false,
    };
    let mut response = http::Response::new(if small {
        reply
    } else {
        Reply::tonic(Body::new(Outgoing::new(reply, Class::Validator, ())))
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// A response that is not sent yet.
struct Unread {
    data: Vec<u8>,
    connection: Arc<Connection>,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.connection.unread.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project! {
    /// The body of any response.
    #[project = ReplyProjection]
    pub enum Reply {
        /// One message, followed by the OK status.
        Message { data: Option<Bytes>, ended: bool },
        /// A body that tonic created.
        Tonic { #[pin] body: Body },
    }
}

impl Reply {
    pub(in crate::api) fn tonic(body: Body) -> Self {
        Self::Tonic { body }
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (data, ended) = match self.project() {
            ReplyProjection::Message { data, ended } => (data, ended),
            ReplyProjection::Tonic { body } => {
                return Poll::Ready(ready!(body.poll_frame(cx)));
            }
        };
        Poll::Ready(match data.take() {
            Some(data) => {
                stall::gave();
                Some(Ok(Frame::data(data)))
            }
            None if *ended => None,
            None => {
                *ended = true;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message { ended, .. } => *ended,
            Self::Tonic { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message { .. } => SizeHint::default(),
            Self::Tonic { body } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::bytes::{BufMut as _, BytesMut};

    use super::*;
    use crate::api::proto::{ValidateRequest, validate_request::Credential};

    fn asked() -> ValidateRequest {
        ValidateRequest {
            credential: Some(Credential::Key("a key".to_owned())),
            ..ValidateRequest::default()
        }
    }

    fn framed(message: &[u8]) -> Bytes {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.put_slice(message);
        frame.freeze()
    }

    /// Returns the message in these frames, or all frames unchanged.
    async fn came(frames: &[Frame<Bytes>]) -> Result<ValidateRequest, Vec<Bytes>> {
        let copied = frames.iter().map(|frame| match frame.data_ref() {
            Some(data) => Frame::data(data.clone()),
            None => Frame::trailers(frame.trailers_ref().cloned().unwrap_or_default()),
        });
        let body = Again {
            read: copied.map(Ok).collect(),
            body: Body::empty(),
        };
        match arrived(&HeaderMap::new(), body).await {
            Arrived::Message(message) => Ok(message),
            Arrived::Other(mut body) => {
                let mut again = Vec::new();
                while let Poll::Ready(Some(frame)) = now(&mut body).await {
                    again.push(frame.unwrap().into_data().unwrap_or_default());
                }
                Err(again)
            }
        }
    }

    #[tokio::test]
    async fn one_whole_message_in_one_frame_is_read() {
        let frame = framed(&asked().encode_to_vec());
        assert_eq!(came(&[Frame::data(frame)]).await.unwrap(), asked());
        let empty = came(&[Frame::data(framed(&[]))]).await.unwrap();
        assert_eq!(empty, ValidateRequest::default());
    }

    #[tokio::test]
    async fn anything_else_goes_on_as_it_came() {
        let frame = framed(&asked().encode_to_vec());
        let compressed = [&[1], &frame[1..]].concat();
        let longer = [&frame[..], &[0]].concat();
        let large = framed(&vec![0; MESSAGE_MAX + 1]);
        for parts in [
            vec![],
            vec![frame.slice(..3)],
            vec![frame.slice(..7), frame.slice(7..)],
            vec![frame.clone(), frame.clone()],
            vec![frame.clone(), Bytes::new()],
            vec![compressed.into()],
            vec![longer.into()],
            vec![framed(b"\xff")],
            vec![large],
        ] {
            let frames: Vec<_> = parts.iter().cloned().map(Frame::data).collect();
            assert_eq!(came(&frames).await.unwrap_err(), parts);
        }
        let trailers = Frame::trailers(HeaderMap::new());
        let came = came(&[Frame::data(frame.clone()), trailers]).await;
        assert_eq!(came.unwrap_err(), [frame, Bytes::new()]);
    }
}
