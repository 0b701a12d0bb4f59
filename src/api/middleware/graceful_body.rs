//! Ends unbounded streams when the server stops.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::codegen::http::HeaderMap;

use crate::api::convert::status;

pin_project! {
    /// A body that forwards its inner body until `stop`. It then sends everything that the inner
    /// body has ready, and ends with UNAVAILABLE.
    pub(in crate::api) struct GracefulBody<B> {
        #[pin]
        inner: B,
        #[pin]
        stop: WaitForCancellationFutureOwned,
        ended: bool,
    }
}

impl<B> GracefulBody<B> {
    pub(in crate::api) fn new(inner: B, stop: WaitForCancellationFutureOwned) -> Self {
        Self {
            inner,
            stop,
            ended: false,
        }
    }
}

impl<B: Body> Body for GracefulBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = this.inner.poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if this.stop.poll(cx).is_pending() {
            return Poll::Pending;
        }
        *this.ended = true;
        let mut trailers = HeaderMap::new();
        // This fails only if the message is not a valid header, and this message is valid.
        let _ = status::stopping().add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }
}
