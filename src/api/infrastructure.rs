//! Handles health and reflection calls. They need no credential, so their total is bounded.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::Body as HttpBody;
use prost::bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    service::Routes,
};

use super::{
    MESSAGE_MAX, Peer,
    convert::status,
    convert::status::complete,
    middleware::budget::{Charge, Class},
    middleware::graceful_body::GracefulBody,
    middleware::intake::Intake,
    middleware::outgoing::{Outgoing, Sent},
    middleware::reflection::{Questions, Turn},
};
use crate::service::quota::{Quota, Share};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTIONS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The maximum number of streams of unidentified callers.
const STREAMS_MAX: usize = 256;
/// The maximum number of them per address.
const STREAMS_MAX_PER_ADDRESS: usize = STREAMS_MAX / 4;

/// Handles health and reflection calls.
#[derive(Clone)]
pub struct Infrastructure {
    routes: Routes,
    streams: Arc<Quota<Option<IpAddr>>>,
    stop: CancellationToken,
}

impl Infrastructure {
    /// Creates a handler that serves these routes until `stop`.
    #[must_use]
    pub fn new(routes: Routes, stop: CancellationToken) -> Self {
        Self {
            routes,
            streams: Quota::new(STREAMS_MAX, STREAMS_MAX_PER_ADDRESS),
            stop,
        }
    }

    /// Returns the service of a connection that serves only health and reflection.
    #[must_use]
    pub fn for_probes(&self, peer: Peer) -> Probes {
        Probes {
            infrastructure: self.clone(),
            peer,
        }
    }

    /// Handles a call from this peer.
    pub(super) async fn answer<B>(
        &self,
        request: http::Request<B>,
        peer: &Peer,
    ) -> http::Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let answer = match request.uri().path() {
            CHECK => self.check(request).await,
            WATCH => self.watch(request, peer).await,
            path if REFLECTIONS.contains(&path) => self.reflect(request, peer).await,
            _ => Err(status::unknown_method()),
        };
        complete(answer.unwrap_or_else(Status::into_http))
    }

    async fn check<B>(&self, request: http::Request<B>) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let (request, _charge) = self.read(request, Class::Probe).await?;
        Ok(self.call(request).await)
    }

    async fn watch<B>(
        &self,
        request: http::Request<B>,
        peer: &Peer,
    ) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let place = self.place(peer)?;
        let (request, _charge) = self.read(request, Class::Stranger).await?;
        let answer = self.call(request).await;
        Ok(answer.map(|body| self.stream(body, place)))
    }

    async fn reflect<B>(
        &self,
        request: http::Request<B>,
        peer: &Peer,
    ) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let (place, charge) = (self.place(peer)?, Charge::take(Class::Stranger, 0)?);
        let turn = Turn::default();
        let questions = |body| Body::new(Questions::new(body, turn.clone(), charge));
        let answer = self.call(request.map(questions)).await;
        Ok(answer.map(|body| {
            self.stream(
                body,
                Asked {
                    turn,
                    _place: place,
                },
            )
        }))
    }

    /// Reads a whole request.
    async fn read<B>(
        &self,
        request: http::Request<B>,
        class: Class,
    ) -> Result<(http::Request<Body>, Charge), Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let intake = Intake {
            class,
            max: MESSAGE_MAX,
            began: Instant::now(),
            stop: &self.stop,
        };
        let (parts, body) = request.into_parts();
        let (body, charge) = intake.whole(body).await?;
        Ok((http::Request::from_parts(parts, Body::new(body)), charge))
    }

    fn place(&self, peer: &Peer) -> Result<Share<Option<IpAddr>>, Status> {
        let place = self.streams.try_take(&peer.ip());
        place.ok_or_else(status::overloaded)
    }

    async fn call(&self, request: http::Request<Body>) -> http::Response<Body> {
        match self.routes.clone().call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// Returns a body that ends when the server stops, at the latest, and keeps `held` until its
    /// end.
    fn stream<H: Sent + Send + 'static>(&self, body: Body, held: H) -> Body {
        let stop = self.stop.clone().cancelled_owned();
        Body::new(GracefulBody::new(
            Outgoing::new(body, Class::Stranger, held),
            stop,
        ))
    }
}

/// The resources that a reflection stream holds.
struct Asked {
    turn: Turn,
    _place: Share<Option<IpAddr>>,
}

impl Sent for Asked {
    fn sent(&self) {
        self.turn.sent();
    }
}

impl Sent for Share<Option<IpAddr>> {}

/// Polls a future once.
pub(super) async fn now<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// The service of a connection to the probe port.
#[derive(Clone)]
pub struct Probes {
    infrastructure: Infrastructure,
    peer: Peer,
}

impl<B> Service<http::Request<B>> for Probes
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.infrastructure.answer(request, &this.peer).await) })
    }
}
