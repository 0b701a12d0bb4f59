//! The body of an answer until its peer has read it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::bytes::Bytes;
use tokio::sync::oneshot;
use tonic::{Status, codegen::http::HeaderMap};

use super::{
    budget::{Charge, Class},
    stall,
};

/// The most bytes that a peer must take within the time that a stall may last.
const PIECE_MAX: usize = 64 * 1024;

pin_project! {
    /// A body that gives the next bytes only once those before are sent. Its bytes are charged until
    /// then, and so is what it holds on to kept.
    pub(super) struct Outgoing<B, H> {
        #[pin]
        inner: B,
        class: Class,
        held: Option<H>,
        // What was taken from the inner body and not given yet.
        rest: Bytes,
        // Ends when the last piece that was given is sent.
        sent: Option<oneshot::Receiver<()>>,
        ended: bool,
    }
}

/// Bytes that are charged until they are dropped.
struct Charged {
    data: Bytes,
    _charge: Charge,
}

/// A piece of an answer. Dropped once it is written, or its stream has ended.
struct Piece {
    data: Bytes,
    _sent: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl<B, H> Outgoing<B, H> {
    /// Wraps a body. What is `held` is dropped with the end of the body.
    pub(super) fn new(inner: B, class: Class, held: H) -> Self {
        Self {
            inner,
            class,
            held: Some(held),
            rest: Bytes::new(),
            sent: None,
            ended: false,
        }
    }
}

/// Charges bytes until they are dropped.
fn charged(class: Class, data: Bytes) -> Result<Bytes, Status> {
    let charge = Charge::take(class, data.len())?;
    Ok(Bytes::from_owner(Charged {
        data,
        _charge: charge,
    }))
}

impl<B: Body<Data = Bytes>, H: Sent> Body for Outgoing<B, H> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if let Some(sent) = this.sent {
            ready!(Pin::new(sent).poll(cx)).ok();
            *this.sent = None;
            if let (true, Some(held)) = (this.rest.is_empty(), &this.held) {
                held.sent();
            }
        }
        while this.rest.is_empty() && !*this.ended {
            let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
                stall::waits();
                return Poll::Pending;
            };
            let last = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => match charged(*this.class, data) {
                    Ok(data) => {
                        *this.rest = data;
                        continue;
                    }
                    Err(busy) => Frame::trailers(trailers(&busy)),
                },
                Some(Ok(Err(last))) => last,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => break,
            };
            *this.ended = true;
            *this.held = None;
            return Poll::Ready(Some(Ok(last)));
        }
        if this.rest.is_empty() {
            *this.ended = true;
            *this.held = None;
            return Poll::Ready(None);
        }
        let (notify, sent) = oneshot::channel();
        let data = this.rest.split_to(this.rest.len().min(PIECE_MAX));
        *this.sent = Some(sent);
        stall::gave();
        let piece = Piece {
            data,
            _sent: notify,
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.rest.is_empty() && self.sent.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What is to be done when all that a body has given so far is sent.
pub(super) trait Sent {
    fn sent(&self) {}
}

impl Sent for () {}

/// A status as the last headers of an answer.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It fails only for a message that is no header, and ours is.
    let _ = status.add_header(&mut trailers);
    trailers
}
