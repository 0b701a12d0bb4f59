//! The wire of a Validate: what nearly every client sends is read here, and the rest by tonic.
//!
//! tonic reads any request through a boxed body and a buffer of 8 KiB, and writes any answer by
//! another. A Validate is one short message in one frame, so that it can be read where it lies and
//! answered by as many bytes as it takes. What comes otherwise (in parts, compressed, too large, not
//! a message at all) goes to tonic as it came, whose word on it stands.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes, BytesMut},
};
use tonic::{
    Request, Status,
    body::Body,
    codegen::http::{self, HeaderMap, HeaderValue, header::CONTENT_TYPE},
    metadata::{GRPC_CONTENT_TYPE, MetadataMap},
};

use super::{MESSAGE_MAX, answer::Answer, proto::ValidateRequest};

/// What comes before a message: whether it is compressed, and its length.
const HEAD: usize = 5;
/// More than a usual answer takes.
const ANSWER_USUAL: usize = 320;

/// A request as it came.
pub(super) enum Read<B: HttpBody> {
    /// One whole message in one frame, and nothing else.
    Message(Request<ValidateRequest>),
    /// Anything else, of which nothing is lost.
    Other(http::Request<Again<B>>),
}

/// Reads a request.
pub(super) async fn read<B>(request: http::Request<B>) -> Read<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (parts, mut body) = request.into_parts();
    let mut read = VecDeque::new();
    let usual = !parts.headers.contains_key("grpc-encoding");
    if usual && let Some(first) = next(&mut body).await {
        let message = first.as_ref().ok().and_then(message);
        let ended = message.is_some() && (body.is_end_stream() || ends(&mut body, &mut read).await);
        match message {
            Some(message) if ended => {
                let metadata = MetadataMap::from_headers(parts.headers);
                let extensions = parts.extensions;
                return Read::Message(Request::from_parts(metadata, extensions, message));
            }
            _ => read.push_front(first),
        }
    }
    let body = Again { read, body };
    Read::Other(http::Request::from_parts(parts, body))
}

/// Waits for the whole of a request with one message, as far as one may be read.
pub(super) async fn whole<B>(request: http::Request<B>) -> http::Request<Again<B>>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (parts, mut body) = request.into_parts();
    let (mut data, mut read) = (BytesMut::new(), VecDeque::new());
    while data.len() <= HEAD + MESSAGE_MAX
        && let Some(frame) = next(&mut body).await
    {
        match frame.map(Frame::into_data) {
            Ok(Ok(more)) => data.extend_from_slice(&more),
            Ok(Err(trailers)) => read.push_back(Ok(trailers)),
            Err(broken) => {
                read.push_back(Err(broken));
                break;
            }
        }
    }
    read.push_front(Ok(Frame::data(data.freeze())));
    http::Request::from_parts(parts, Again { read, body })
}

async fn next<B: HttpBody + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// Whether nothing follows; what does is kept.
async fn ends<B: HttpBody + Unpin>(
    body: &mut B,
    read: &mut VecDeque<Result<Frame<B::Data>, B::Error>>,
) -> bool {
    read.extend(next(body).await);
    read.is_empty()
}

/// The message, if the frame is a whole one that is not compressed and can be read.
fn message(frame: &Frame<Bytes>) -> Option<ValidateRequest> {
    let data = frame.data_ref()?;
    let (head, message) = data.split_at_checked(HEAD)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let whole = head[0] == 0 && length == message.len() && length <= MESSAGE_MAX;
    // What cannot be read is refused by the codec, in words that tell nothing of it.
    whole.then(|| ValidateRequest::decode(message).ok())?
}

pin_project! {
    /// A body of which a part was read already.
    pub(super) struct Again<B: HttpBody> {
        read: VecDeque<Result<Frame<B::Data>, B::Error>>,
        #[pin]
        body: B,
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

/// The answer to what [`read`] has read.
pub(super) fn write(answer: Result<Answer, Status>) -> http::Response<Reply> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return status.into_http::<Body>().map(Reply::tonic),
    };
    let mut data = BytesMut::with_capacity(ANSWER_USUAL);
    data.put_bytes(0, HEAD);
    answer.write(&mut data);
    // An answer is made of one key, which is made of one message of at most 64 KiB.
    let length = u32::try_from(data.len() - HEAD).unwrap_or(u32::MAX);
    data[1..HEAD].copy_from_slice(&length.to_be_bytes());
    let mut response = http::Response::new(Reply::Message {
        data: Some(data.freeze()),
        ended: false,
    });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

pin_project! {
    /// The body of any answer.
    #[project = ReplyProjection]
    pub enum Reply {
        /// One message, and then that all is well.
        Message { data: Option<Bytes>, ended: bool },
        /// Whatever tonic makes.
        Tonic { #[pin] body: Body },
    }
}

impl Reply {
    pub(super) fn tonic(body: Body) -> Self {
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
            Some(data) => Some(Ok(Frame::data(data))),
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
    use super::*;
    use crate::grpc::proto::validate_request::Credential;

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

    /// Reads these frames: the message, or all the frames again.
    async fn came(frames: &[Frame<Bytes>]) -> Result<ValidateRequest, Vec<Bytes>> {
        let copied = frames.iter().map(|frame| match frame.data_ref() {
            Some(data) => Frame::data(data.clone()),
            None => Frame::trailers(frame.trailers_ref().cloned().unwrap_or_default()),
        });
        let body = Again {
            read: copied.map(Ok).collect(),
            body: Body::empty(),
        };
        match read(http::Request::new(body)).await {
            Read::Message(request) => Ok(request.into_inner()),
            Read::Other(request) => {
                let (mut body, mut again) = (request.into_body(), Vec::new());
                while let Some(frame) = next(&mut body).await {
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
