//! The service of one connection.
//!
//! A caller is identified by the headers of a call, before the body is read. Hot calls are handled
//! here, on the connection's own thread, without the router. Every other call runs on the runtime
//! for slow work. There a read is aborted when its caller is gone; a change is notified that its
//! caller is gone.

mod batch;

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    marker::PhantomData,
    pin::pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
};

use http_body::Body as HttpBody;
use opentelemetry::trace::FutureExt as _;
use prost::bytes::Bytes;
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError, http},
    server::{Grpc, UnaryService},
    service::Routes,
};
use tower::Layer as _;

use super::{
    Api, Infrastructure, MESSAGE_MAX, Peer,
    caller::{Asker, Connection},
    convert::status,
    convert::status::complete,
    hot_call::{Check, Codec, HotCall, Validate},
    infrastructure::now,
    method,
    middleware::budget::{Charge, Class},
    middleware::deadline,
    middleware::intake::Intake,
    middleware::metrics::{self, Call},
    middleware::outgoing::{Outgoing, Sent},
    middleware::trace::{Trace, TraceLayer},
    validate::decode::{self, Again, Arrived, Reply},
};
use crate::{
    domain::caller::{Action, Principal},
    metrics::{Collect, Encoder},
    service::{
        presence::Presence,
        quota::{Quota, Share},
    },
};

const VALIDATE: &str = "/gatekey.v1.KeyService/Validate";
const BATCH_VALIDATE: &str = "/gatekey.v1.KeyService/BatchValidate";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const WATCH_EVENTS: &str = "/gatekey.v1.EventService/WatchEvents";
/// The path prefix of health and reflection, which do not count against the limits below.
const OTHERS: &str = "/grpc.";
/// The maximum number of concurrent calls other than hot calls and [`OTHERS`], until their responses
/// are sent. Many calls may wait for a lost replica; more would only wait for their turn.
const CALLS_MAX: usize = 1024;
/// The maximum number of them per caller.
const CALLS_MAX_PER_CALLER: usize = CALLS_MAX / 4;
/// The maximum number of concurrent lists, whose responses may be large. Excess lists wait.
const LISTS_MAX: usize = 16;
/// The maximum number of them per caller.
const LISTS_MAX_PER_CALLER: usize = LISTS_MAX / 4;
/// The maximum number of calls that wait for the database to identify their caller.
const UNIDENTIFIED_MAX: usize = 1024;

/// The application, which creates the service of each connection.
#[derive(Clone)]
pub struct App {
    shared: Arc<Shared>,
    traces: TraceLayer,
}

/// The state that all connections share.
struct Shared {
    api: Arc<Api>,
    routes: Routes,
    infrastructure: Infrastructure,
    slow: Handle,
    calls: Arc<Quota<Principal>>,
    lists: Arc<Quota<Principal>>,
    unidentified: Semaphore,
}

impl App {
    /// Creates the application from the API's handlers and `infrastructure`. Slow work runs on the
    /// current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(api: Api, infrastructure: Infrastructure, traces: TraceLayer) -> Self {
        let api = Arc::new(api);
        let shared = Shared {
            routes: Api::routes(&api),
            api,
            infrastructure,
            slow: Handle::current(),
            calls: Quota::new(CALLS_MAX, CALLS_MAX_PER_CALLER),
            lists: Quota::new(LISTS_MAX, LISTS_MAX_PER_CALLER),
            unidentified: Semaphore::new(UNIDENTIFIED_MAX),
        };
        Self {
            shared: Arc::new(shared),
            traces,
        }
    }

    /// Creates the service of one connection.
    #[must_use]
    pub fn front(&self, peer: Peer) -> Trace<ConnectionService> {
        let connection = Connection {
            peer,
            unread: AtomicUsize::new(0),
        };
        self.traces.layer(ConnectionService {
            shared: Arc::clone(&self.shared),
            connection: Arc::new(connection),
        })
    }
}

/// The service of one connection.
#[derive(Clone)]
pub struct ConnectionService {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

impl<B> Service<http::Request<B>> for ConnectionService
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = http::Response<Reply>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let front = self.clone();
        let path = request.uri().path();
        if path == VALIDATE {
            return Box::pin(async move { Ok(front.decide::<Validate, B>(request).await) });
        }
        if path == CHECK {
            return Box::pin(async move { Ok(front.decide::<Check, B>(request).await) });
        }
        let peer = Arc::new(self.connection.peer.clone());
        let call = Call::begin(&self.shared.api, path, &peer);
        if path.starts_with(OTHERS) {
            return Box::pin(async move {
                let infrastructure = &front.shared.infrastructure;
                let answer = infrastructure.answer(request, &front.connection.peer);
                Ok(call.ends_with(answer.await))
            });
        }
        if path == BATCH_VALIDATE {
            return Box::pin(async move {
                let answer = front.validate_batch(request, call.began(), peer).await;
                Ok(call.ends_with(complete(answer.unwrap_or_else(Status::into_http))))
            });
        }
        Box::pin(async move {
            let answer = front.administer(request, call.began(), peer).await;
            Ok(call.ends_with(complete(answer.unwrap_or_else(Status::into_http))))
        })
    }
}

impl ConnectionService {
    /// Handles a hot call.
    async fn decide<C, B>(self, request: http::Request<B>) -> http::Response<Reply>
    where
        C: HotCall,
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let api = &self.shared.api;
        let began = metrics::begin_sampled();
        let (parts, body) = request.into_parts();
        let peer = self.connection.peer.clone();
        let identifying = api.identify_asker(&parts.headers, &peer);
        let (answer, asker) = match self.shared.identified(identifying).await {
            Err(status) => (Err(status), None),
            Ok(asker) => match decode::arrived(&parts.headers, body).await {
                Arrived::Message(message) => {
                    let answer = C::answer(api, &asker, message).await;
                    api.calls.count::<C>(&answer, began);
                    (answer, Some(asker))
                }
                // Boxed separately, to keep the future of the common path small.
                Arrived::Other(body) => {
                    let request = http::Request::from_parts(parts, body);
                    let late = self.decide_late::<C, B>(request, asker.clone(), began);
                    let answer = Box::pin(late).await;
                    return self.decided::<C>(answer, &peer, Some(&asker));
                }
            },
        };
        let connection = Arc::clone(&self.connection);
        self.decided::<C>(decode::write(answer, connection), &peer, asker.as_ref())
    }

    /// Handles a hot call whose request has not arrived completely or has an unusual form.
    async fn decide_late<C, B>(
        &self,
        request: http::Request<Again<B>>,
        asker: Asker,
        began: Option<Instant>,
    ) -> http::Response<Reply>
    where
        C: HotCall,
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let (api, connection) = (&self.shared.api, Arc::clone(&self.connection));
        let intake = Intake {
            class: Class::Validator,
            max: MESSAGE_MAX,
            began: Instant::now(),
            stop: &api.stop,
        };
        let (body, _charge) = match intake.whole(body).await {
            Ok(whole) => whole,
            Err(status) => return decode::write::<C::Answer>(Err(status), connection),
        };
        // The duration excludes the time in which the client sends the rest.
        let began = began.map(|_| Instant::now());
        match decode::arrived(&parts.headers, body).await {
            Arrived::Message(message) => {
                let answer = C::answer(api, &asker, message).await;
                api.calls.count::<C>(&answer, began);
                decode::write(answer, connection)
            }
            Arrived::Other(body) => {
                let codec = Codec::<C>::default();
                let mut grpc =
                    Grpc::new(codec).apply_max_message_size_config(Some(MESSAGE_MAX), None);
                let api = Arc::clone(api);
                let handler = Handler::<C> {
                    api,
                    asker,
                    began,
                    call: PhantomData,
                };
                let request = http::Request::from_parts(parts, body);
                let answer = grpc.unary(handler, request).await;
                let outgoing =
                    |body| Reply::tonic(Body::new(Outgoing::new(body, Class::Validator, ())));
                answer.map(outgoing)
            }
        }
    }

    /// Completes the response to a hot call, and counts it if it is an error.
    fn decided<C: HotCall>(
        &self,
        answer: http::Response<Reply>,
        peer: &Peer,
        asker: Option<&Asker>,
    ) -> http::Response<Reply> {
        let answer = complete(answer);
        let calls = &self.shared.api.calls;
        calls.count_undecided::<C>(answer.headers(), peer, asker);
        answer
    }

    /// Handles a call of any other service of this server.
    async fn administer<B>(
        self,
        request: http::Request<B>,
        began: Instant,
        peer: Arc<Peer>,
    ) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let api = &self.shared.api;
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path();
        let action = method::find(path).and_then(|which| method::action(method::METHODS[which]));
        let action = action.ok_or_else(status::unknown_method)?;
        let identifying = api.identify_by(&parts.headers, &peer, action);
        let caller = self.shared.identified(identifying).await?;
        let intake = Intake {
            class: Class::Caller,
            max: MESSAGE_MAX,
            began,
            stop: &api.stop,
        };
        // Reads the whole body first, so that a slow sender does not use up the limit.
        let (body, charge) = intake.whole(body).await?;
        let place = self.shared.calls.try_take(&caller.principal);
        let place = place.ok_or_else(status::overloaded)?;
        let work = Work {
            read: is_read(action),
            stream: path == WATCH_EVENTS,
            list: is_list(path).then(|| caller.principal.clone()),
            place,
            charge,
        };
        let (presence, guard) = Presence::new(deadline::deadline(&parts.headers, began));
        parts.extensions.insert(caller);
        parts.extensions.insert(presence.clone());
        parts.extensions.insert(peer);
        let request = http::Request::from_parts(parts, Body::new(body));
        let answer = self.shared.carry_out(work, request, presence).await;
        guard.answered();
        answer
    }
}

impl Shared {
    /// Waits until a caller is identified. At most [`UNIDENTIFIED_MAX`] calls may wait for the
    /// database.
    async fn identified<T>(
        &self,
        identifying: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut identifying = pin!(identifying);
        if let Poll::Ready(identified) = now(identifying.as_mut()).await {
            return identified;
        }
        let place = self.unidentified.try_acquire();
        let _place = place.map_err(|_| status::overloaded())?;
        identifying.await
    }
}

/// A call to run on the runtime for slow work.
struct Work {
    /// True if the call changes nothing and therefore ends with its caller.
    read: bool,
    /// True if the response is a stream of its own.
    stream: bool,
    /// The caller, if the response is a list.
    list: Option<Principal>,
    place: Share<Principal>,
    charge: Charge,
}

/// The quota that a call holds until its response is sent: among all calls, and among the lists.
struct Places(
    #[expect(dead_code, reason = "it is held, not used")]
    (Share<Principal>, Option<Share<Principal>>),
);

impl Sent for Places {}

impl Shared {
    /// Runs a call. A change continues without its caller for as long as it decides to.
    async fn carry_out(
        self: &Arc<Self>,
        work: Work,
        request: http::Request<Body>,
        presence: Presence,
    ) -> Result<http::Response<Body>, Status> {
        let read = work.read;
        let task = Arc::clone(self).do_work(work, request);
        let task = self.slow.spawn(task.with_current_context());
        let answered = if read {
            let mut task = AbortOnDropHandle::new(task);
            tokio::select! {
                biased;
                answered = &mut task => answered,
                gone = presence.gone() => return Err(status::gone(gone)),
            }
        } else {
            task.await
        };
        answered.map_err(|ended| {
            if ended.is_panic() {
                status::failed()
            } else {
                status::stopping()
            }
        })
    }

    async fn do_work(
        self: Arc<Self>,
        work: Work,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let list = match &work.list {
            Some(principal) => Some(self.lists.take(principal).await),
            None => None,
        };
        let answer = match self.routes.clone().call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        drop(work.charge);
        let (head, body) = answer.into_parts();
        // The response is encoded here, and not on the threads that serve connections.
        let body = if work.stream {
            Again::new(VecDeque::new(), body)
        } else {
            decode::begun(body).await
        };
        let places = Places((work.place, list));
        let body = Body::new(Outgoing::new(body, Class::Caller, places));
        http::Response::from_parts(head, body)
    }
}

/// Returns whether a call changes nothing, so that it can end with its caller.
fn is_read(action: Action) -> bool {
    match action {
        Action::KeysGet
        | Action::KeysList
        | Action::KeysValidate
        | Action::KeysLookup
        | Action::OwnersRead
        | Action::TenantsRead
        | Action::EventsRead => true,
        Action::KeysCreate
        | Action::KeysUpdate
        | Action::KeysRotate
        | Action::KeysRevoke
        | Action::OwnersWrite
        | Action::TenantsWrite => false,
    }
}

/// Returns whether the response of a method is a list.
fn is_list(path: &str) -> bool {
    let method = path.rsplit('/').next();
    method.is_some_and(|method| method.starts_with("List"))
}

impl Collect for App {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        self.shared.api.calls.collect(page)?;
        self.shared.api.validator.collect(page)?;
        self.shared.api.keyring.collect(page)?;
        self.shared.api.replica.collect(page)?;
        self.shared.api.usage.collect(page)
    }
}

/// Handles one hot call for tonic.
struct Handler<C> {
    api: Arc<Api>,
    asker: Asker,
    /// The start time, if the duration is measured.
    began: Option<Instant>,
    call: PhantomData<C>,
}

impl<C: HotCall> UnaryService<C::Request> for Handler<C> {
    type Response = C::Answer;
    type Future = BoxFuture<Response<C::Answer>, Status>;

    fn call(&mut self, request: Request<C::Request>) -> Self::Future {
        let (api, asker, began) = (Arc::clone(&self.api), self.asker.clone(), self.began);
        Box::pin(async move {
            let answer = C::answer(&api, &asker, request.into_inner()).await;
            api.calls.count::<C>(&answer, began);
            Ok(Response::new(answer?))
        })
    }
}
