//! The front door: one for each connection.
//!
//! Validate is answered here, on the connection's own thread, past the router. Every other call
//! goes to the runtime of what is slow, where it is carried out even if its caller goes away: a
//! mutation is never left half told.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::Body as HttpBody;
use opentelemetry::trace::FutureExt as _;
use tokio::{runtime::Handle, sync::Semaphore};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    server::{Grpc, UnaryService},
    service::Routes,
};
use tower::Layer as _;

use super::{
    Doors, MESSAGE_MAX, Peer,
    answer::{Answer, Codec},
    calls::Call,
    complete::complete,
    ending::Ending,
    patience::deadline,
    proto::ValidateRequest,
    status,
    trace::{Trace, TraceLayer},
    unary::{self, Read, Reply},
};
use crate::{
    meter::{Page, Tell},
    service::presence::Presence,
};

const VALIDATE: &str = "/gatekey.v1.KeyService/Validate";
/// Health and reflection, which take no room from others.
const OTHERS: &str = "/grpc.";
/// The most calls under way at once beside Validate and [`OTHERS`]: many may wait for a lost replica,
/// and what is beyond that would only wait for its turn.
const CALLS_MAX: usize = 1024;

/// What stands behind every front door.
#[derive(Clone)]
pub struct House {
    doors: Arc<Doors>,
    routes: Routes,
    slow: Handle,
    calls: Arc<Semaphore>,
    traces: TraceLayer,
}

impl House {
    /// A house with these doors, and `others` (health, reflection) beside them. What is slow runs
    /// on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(doors: Doors, others: Routes, traces: TraceLayer) -> Self {
        let doors = Arc::new(doors);
        Self {
            routes: Doors::routes(&doors, others),
            doors,
            slow: Handle::current(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            traces,
        }
    }

    /// The front door for one connection.
    #[must_use]
    pub fn front(&self, peer: Peer) -> Trace<Front> {
        self.traces.layer(Front {
            house: self.clone(),
            peer,
        })
    }
}

/// The service of one connection.
#[derive(Clone)]
pub struct Front {
    house: House,
    peer: Peer,
}

impl<B> Service<http::Request<B>> for Front
where
    B: HttpBody<Data = prost::bytes::Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = http::Response<Reply>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() == VALIDATE {
            let (doors, peer) = (Arc::clone(&self.house.doors), self.peer.clone());
            return Box::pin(async move {
                let answer = match unary::read(request).await {
                    Read::Message(request) => {
                        let work = doors.answer_validate(request, &peer);
                        unary::write(doors.calls.decide(work).await)
                    }
                    // Apart, so that the usual one has little to carry.
                    Read::Other(request) => {
                        let mut grpc =
                            Grpc::new(Codec).apply_max_message_size_config(Some(MESSAGE_MAX), None);
                        let doors = Arc::clone(&doors);
                        let validate = Validate { doors, peer };
                        let answer = Box::pin(grpc.unary(validate, request)).await;
                        answer.map(Reply::tonic)
                    }
                };
                let answer = complete(answer);
                doors.calls.count_undecided(answer.headers());
                Ok(answer)
            });
        }
        let call = Call::begin(&self.house.doors, request.uri().path());
        if request.uri().path().starts_with(OTHERS) {
            let stop = self.house.doors.stop.clone();
            let answer = self.carry_out(request.map(Body::new));
            return Box::pin(async move {
                // Their streams are endless; those of events end by themselves.
                let ending = |body| Body::new(Ending::new(body, stop.cancelled_owned()));
                Ok(call.ends_with(complete(answer.await).map(ending)))
            });
        }
        let front = self.clone();
        let (presence, guard) = Presence::new(deadline(request.headers()));
        let mut request = request;
        request.extensions_mut().insert(presence);
        Box::pin(async move {
            // Whole first, so that who sends slowly keeps nobody out.
            let request = unary::whole(request).await;
            let Ok(inside) = Arc::clone(&front.house.calls).try_acquire_owned() else {
                return Ok(call.ends_with(complete(status::overloaded().into_http())));
            };
            let answer = front.carry_out(request.map(Body::new)).await;
            drop(inside);
            guard.answered();
            Ok(call.ends_with(complete(answer)))
        })
    }
}

impl Front {
    /// Carries a call out where what is slow runs, to its end even if nobody waits for it.
    fn carry_out(
        &self,
        mut request: http::Request<Body>,
    ) -> impl Future<Output = http::Response<Body>> + Send + use<> {
        request.extensions_mut().insert(self.peer.clone());
        let mut routes = self.house.routes.clone();
        let answer = async move { routes.call(request).await };
        let answer = self.house.slow.spawn(answer.with_current_context());
        async move {
            match answer.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                Err(ended) if ended.is_panic() => status::failed().into_http(),
                Err(_) => status::stopping().into_http(),
            }
        }
    }
}

impl Tell for House {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        self.doors.calls.tell(page)?;
        self.doors.validator.tell(page)?;
        self.doors.keyring.tell(page)?;
        self.doors.replica.tell(page)?;
        self.doors.usage.tell(page)
    }
}

struct Validate {
    doors: Arc<Doors>,
    peer: Peer,
}

impl UnaryService<ValidateRequest> for Validate {
    type Response = Answer;
    type Future = BoxFuture<Response<Answer>, Status>;

    fn call(&mut self, request: Request<ValidateRequest>) -> Self::Future {
        let (doors, peer) = (Arc::clone(&self.doors), self.peer.clone());
        Box::pin(async move {
            let work = doors.answer_validate(request, &peer);
            Ok(Response::new(doors.calls.decide(work).await?))
        })
    }
}
