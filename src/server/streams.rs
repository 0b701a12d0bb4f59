//! Counts the streams of a connection, and bounds the memory of their headers.
//!
//! The HTTP/2 library answers a header list that is too long with 431, which gRPC clients map to
//! UNKNOWN. The limit of the library is therefore higher than the limit of a call. Header lists
//! between the two limits are answered here, with a gRPC status.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use hyper::{HeaderMap, Request, Response, body::Incoming, service::Service};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body as Empty};

use super::admission::{OpenStream, StreamCounter};
use crate::{
    api,
    metrics::{Collect, Encoder},
};

/// Limit of the metadata of a call, in bytes as HTTP/2 counts them: 32 more for each entry.
const METADATA_MAX: usize = 16 * 1024;
const ENTRY_OVERHEAD: usize = 32;
/// Approximate memory of an open stream in addition to its metadata, in bytes.
const STREAM_COST: usize = 4 * 1024;
/// Memory for the open streams of all connections, and the minimum share of one thread, in bytes.
const BUDGET: usize = 64 * 1024 * 1024;
const BUDGET_PER_WORKER_MIN: usize = 4 * 1024 * 1024;

/// The memory budget for the open streams of one serving thread. Threads do not share a budget
/// because they would contend for it on each call.
#[derive(Clone)]
pub struct Budget {
    left: Arc<AtomicUsize>,
    refusals: Arc<Refusals>,
}

/// Counts the calls that were refused before they reached a handler.
#[derive(Default)]
pub struct Refusals {
    metadata: AtomicU64,
    budget: AtomicU64,
}

impl Collect for Refusals {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let counts = [("metadata", &self.metadata), ("busy", &self.budget)];
        let count = |(reason, count): (_, &AtomicU64)| ([("reason", reason)], count.load(Relaxed));
        page.counters(
            "gatekey_streams_refused_total",
            "Calls refused before a handler, because of their metadata or the number of open streams",
            counts.map(count),
        )
    }
}

impl Budget {
    /// Returns the share of one of `workers` threads.
    pub fn share(workers: usize, refusals: &Arc<Refusals>) -> Self {
        let share = (BUDGET / workers.max(1)).max(BUDGET_PER_WORKER_MIN);
        Self {
            left: Arc::new(AtomicUsize::new(share)),
            refusals: Arc::clone(refusals),
        }
    }

    /// Reserves memory for a stream. Returns `None` if too little is left.
    fn take(&self, bytes: usize) -> Option<Taken> {
        let taken = self
            .left
            .try_update(Relaxed, Relaxed, |left| left.checked_sub(bytes));
        taken.ok().map(|_| Taken {
            left: Arc::clone(&self.left),
            bytes,
        })
    }
}

/// Memory that is reserved for a stream until dropped.
struct Taken {
    left: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, Relaxed);
    }
}

/// Resources that an open stream holds until it ends.
struct Held {
    stream: OpenStream,
    _taken: Taken,
}

/// A service that counts and bounds its streams.
pub struct Bounded<S> {
    service: S,
    counter: StreamCounter,
    budget: Budget,
}

impl<S> Bounded<S> {
    pub fn new(service: S, counter: StreamCounter, budget: Budget) -> Self {
        Self {
            service,
            counter,
            budget,
        }
    }

    /// Reserves memory for a stream with these headers.
    fn take(&self, headers: &HeaderMap) -> Result<Taken, Status> {
        let refusals = &self.budget.refusals;
        let size = size(headers);
        if size >= METADATA_MAX {
            refusals.metadata.fetch_add(1, Relaxed);
            return Err(api::metadata_too_large());
        }
        self.budget.take(STREAM_COST + size).ok_or_else(|| {
            refusals.budget.fetch_add(1, Relaxed);
            api::overloaded()
        })
    }
}

/// Returns the size of a header list as HTTP/2 counts it (RFC 9113, 10.5.1).
fn size(headers: &HeaderMap) -> usize {
    let entries = headers.iter();
    let sizes = entries.map(|(name, value)| name.as_str().len() + value.len() + ENTRY_OVERHEAD);
    sizes.sum()
}

impl<S, B> Service<Request<Incoming>> for Bounded<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<Counted<B>>;
    type Error = S::Error;
    type Future = Handling<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match self.take(request.headers()) {
            Ok(taken) => {
                let held = Held {
                    stream: self.counter.open(),
                    _taken: taken,
                };
                Handling::Handler {
                    response: self.service.call(request),
                    held: Some(held),
                }
            }
            Err(status) => Handling::Refused {
                status: Some(Box::new(status)),
            },
        }
    }
}

pin_project! {
    /// The future of a response.
    #[project = HandlingProjection]
    pub enum Handling<F> {
        Handler { #[pin] response: F, held: Option<Held> },
        Refused { status: Option<Box<Status>> },
    }
}

impl<F, B, E> Future for Handling<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Counted<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match self.project() {
            HandlingProjection::Handler { response, held } => {
                let response = ready!(response.poll(cx))?;
                let mut held = held.take();
                if let Some(held) = &mut held {
                    held.stream.handled();
                }
                response.map(|body| Counted {
                    body: Some(body),
                    held,
                })
            }
            HandlingProjection::Refused { status } => {
                let status = status.take().expect("a future that is ready is not polled");
                let response = status.into_http::<Empty>();
                response.map(|_| Counted {
                    body: None,
                    held: None,
                })
            }
        }))
    }
}

pin_project! {
    /// A response body that holds its stream open. Without `body`, the response has no message.
    pub struct Counted<B> {
        #[pin]
        body: Option<B>,
        held: Option<Held>,
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(body) = this.body.as_pin_mut() else {
            return Poll::Ready(None);
        };
        let frame = ready!(body.poll_frame(cx));
        if let Some(held) = this.held {
            held.stream.progress();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
