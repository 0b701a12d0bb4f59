//! Reads request bodies under a deadline and within the memory budget.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, time::Duration};

use http_body::{Body as HttpBody, Frame};
use prost::bytes::{Bytes, BytesMut};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

use crate::api::{
    convert::status,
    middleware::budget::{Charge, Class},
    validate::decode::{Again, HEAD},
};

/// The maximum time from the headers of a request to its end.
pub(in crate::api) const REQUEST_MAX: Duration = Duration::from_secs(10);

/// The conditions under which a request is read.
pub(in crate::api) struct Intake<'a> {
    pub(in crate::api) class: Class,
    /// The maximum size of the message in bytes.
    pub(in crate::api) max: usize,
    /// The arrival time of the headers.
    pub(in crate::api) began: Instant,
    /// Cancelled when the server stops.
    pub(in crate::api) stop: &'a CancellationToken,
}

impl Intake<'_> {
    /// Reads a whole request of one message, and stops once it exceeds the maximum message size.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED when the request does not end in time, UNAVAILABLE when the server stops
    /// first, RESOURCE_EXHAUSTED when the memory budget does not suffice.
    pub(in crate::api) async fn whole<B>(&self, body: B) -> Result<(Again<Body>, Charge), Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let charge = Charge::take(self.class, 0)?;
        self.in_time(collect(body, self.max, charge)).await?
    }

    /// Waits for a part of a request until its deadline or until the server stops.
    ///
    /// # Errors
    /// Same as [`Intake::whole`].
    pub(in crate::api) async fn in_time<T>(
        &self,
        part: impl Future<Output = T>,
    ) -> Result<T, Status> {
        let part = time::timeout_at(self.began + REQUEST_MAX, part);
        tokio::select! {
            biased;
            read = part => read.map_err(|_| status::incomplete()),
            () = self.stop.cancelled() => Err(status::stopping()),
        }
    }
}

async fn collect<B>(
    mut body: B,
    max: usize,
    mut charge: Charge,
) -> Result<(Again<Body>, Charge), Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (mut data, mut read) = (BytesMut::new(), VecDeque::new());
    while data.len() <= HEAD + max
        && let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        match frame.map(Frame::into_data) {
            Ok(Ok(more)) => {
                let before = data.capacity();
                data.extend_from_slice(&more);
                charge.grow_by(data.capacity() - before)?;
            }
            Ok(Err(trailers)) => read.push_back(Ok(trailers)),
            // The stream was reset or its connection is lost, so nobody waits for a response.
            Err(_) => return Err(Status::cancelled("")),
        }
    }
    read.push_front(Ok(Frame::data(data.freeze())));
    Ok((Again::new(read, Body::empty()), charge))
}
