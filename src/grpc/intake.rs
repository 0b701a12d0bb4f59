//! The intake of requests: each body is read under a deadline and within the budget of bytes.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, time::Duration};

use http_body::{Body as HttpBody, Frame};
use prost::bytes::{Bytes, BytesMut};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use super::{
    MESSAGE_MAX,
    budget::{Charge, Class},
    status,
    unary::{Again, HEAD},
};

/// The time from the headers of a request to its end.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(10);

/// The conditions under which a request is read.
pub(super) struct Intake<'a> {
    pub(super) class: Class,
    /// The time at which the headers came.
    pub(super) began: Instant,
    /// Cancelled when the server stops.
    pub(super) stop: &'a CancellationToken,
}

impl Intake<'_> {
    /// Reads the whole of a request with one message, as far as one may be long.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED when it does not end in time, UNAVAILABLE when the server stops before,
    /// RESOURCE_EXHAUSTED when there is no room for it.
    pub(super) async fn whole<B>(&self, body: B) -> Result<(Again<Body>, Charge), Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let charge = Charge::take(self.class, 0)?;
        self.in_time(collect(body, charge)).await?
    }

    /// Waits for a part of a request until its deadline or the stop.
    ///
    /// # Errors
    /// As [`Intake::whole`].
    pub(super) async fn in_time<T>(&self, part: impl Future<Output = T>) -> Result<T, Status> {
        let part = time::timeout_at(self.began + REQUEST_MAX, part);
        tokio::select! {
            biased;
            read = part => read.map_err(|_| status::incomplete()),
            () = self.stop.cancelled() => Err(status::stopping()),
        }
    }
}

async fn collect<B>(mut body: B, mut charge: Charge) -> Result<(Again<Body>, Charge), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (mut data, mut read) = (BytesMut::new(), VecDeque::new());
    while data.len() <= HEAD + MESSAGE_MAX
        && let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        match frame.map(Frame::into_data) {
            Ok(Ok(more)) => {
                let before = data.capacity();
                data.extend_from_slice(&more);
                charge.grow_by(data.capacity() - before)?;
            }
            Ok(Err(trailers)) => read.push_back(Ok(trailers)),
            // The stream was reset, or its connection is lost: nobody waits for an answer.
            Err(_) => return Err(Status::cancelled("")),
        }
    }
    read.push_front(Ok(Frame::data(data.freeze())));
    Ok((Again::new(read, Body::empty()), charge))
}
