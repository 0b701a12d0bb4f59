//! Response bodies that charge their bytes to the memory budget until the peer has read them.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prost::bytes::Bytes;
use tokio::sync::oneshot;
use tonic::{Status, codegen::http::HeaderMap};

use crate::api::{
    middleware::budget::{Charge, Class},
    middleware::stall,
};

/// Maximum number of bytes that a peer must read within the stall timeout.
const PIECE_MAX: usize = 64 * 1024;

pin_project! {
    /// A body that yields the next bytes only after the previous ones are sent. Its bytes are
    /// charged until they are sent; `held` is kept until the body ends.
    pub(in crate::api) struct Outgoing<B, H> {
        #[pin]
        inner: B,
        class: Class,
        held: Option<H>,
        // Bytes read from the inner body and not yielded yet.
        rest: Bytes,
        // Resolves when the last yielded piece is sent.
        sent: Option<oneshot::Receiver<()>>,
        ended: bool,
    }
}

/// Bytes that are charged until they are dropped.
struct Charged {
    data: Bytes,
    _charge: Charge,
}

/// A piece of a response. Dropped when it is written or its stream ends.
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
    /// Wraps a body. Drops `held` when the body ends.
    pub(in crate::api) fn new(inner: B, class: Class, held: H) -> Self {
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

/// A callback that runs when all bytes that a body has yielded so far are sent.
pub(in crate::api) trait Sent {
    fn sent(&self) {}
}

impl Sent for () {}

/// Returns a status as the trailers of a response.
pub(in crate::api) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails only if the message is not a valid header value; these messages are valid.
    let _ = status.add_header(&mut trailers);
    trailers
}
