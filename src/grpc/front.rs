//! The front door: one for each connection.
//!
//! Validate is answered here, on the connection's own thread, past the router. Every other call
//! goes to the runtime of what is slow, where it is carried out even if its caller goes away: a
//! mutation is never left half told.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use http_body::Body as HttpBody;
use opentelemetry::trace::FutureExt as _;
use tokio::runtime::Handle;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    server::{Grpc, UnaryService},
    service::Routes,
    transport::server::TcpConnectInfo,
};
use tower::Layer as _;

use super::{
    Doors, MESSAGE_MAX,
    answer::{Answer, Codec},
    complete::complete,
    ending::Ending,
    proto::ValidateRequest,
    status,
    trace::{Trace, TraceLayer},
    unary::{self, Read, Reply},
};

const VALIDATE: &str = "/gatekey.v1.KeyService/Validate";

/// What stands behind every front door.
#[derive(Clone)]
pub struct House {
    doors: Arc<Doors>,
    routes: Routes,
    slow: Handle,
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
            traces,
        }
    }

    /// The front door for one connection.
    #[must_use]
    pub fn front(&self, peer: SocketAddr) -> Trace<Front> {
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
    peer: SocketAddr,
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
            let (doors, peer) = (Arc::clone(&self.house.doors), self.peer.ip());
            return Box::pin(async move {
                let answer = match unary::read(request).await {
                    Read::Message(request) => {
                        unary::write(doors.answer_validate(request, peer).await)
                    }
                    // Apart, so that the usual one has little to carry.
                    Read::Other(request) => {
                        let mut grpc =
                            Grpc::new(Codec).apply_max_message_size_config(Some(MESSAGE_MAX), None);
                        let validate = Validate { doors, peer };
                        let answer = Box::pin(grpc.unary(validate, request)).await;
                        answer.map(Reply::tonic)
                    }
                };
                Ok(complete(answer))
            });
        }
        // Of health and reflection; those of events end by themselves.
        let endless = request.uri().path().starts_with("/grpc.");
        let stop = self.house.doors.stop.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(self.peer),
        });
        let mut routes = self.house.routes.clone();
        let answer = async move { routes.call(request).await };
        let answer = self.house.slow.spawn(answer.with_current_context());
        Box::pin(async move {
            let answer = match answer.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                Err(ended) if ended.is_panic() => status::failed().into_http(),
                Err(_) => status::stopping().into_http(),
            };
            let answer = complete(answer);
            Ok(if endless {
                answer
                    .map(|body| Reply::tonic(Body::new(Ending::new(body, stop.cancelled_owned()))))
            } else {
                answer.map(Reply::tonic)
            })
        })
    }
}

struct Validate {
    doors: Arc<Doors>,
    peer: IpAddr,
}

impl UnaryService<ValidateRequest> for Validate {
    type Response = Answer;
    type Future = BoxFuture<Response<Answer>, Status>;

    fn call(&mut self, request: Request<ValidateRequest>) -> Self::Future {
        let (doors, peer) = (Arc::clone(&self.doors), self.peer);
        Box::pin(async move { Ok(Response::new(doors.answer_validate(request, peer).await?)) })
    }
}
