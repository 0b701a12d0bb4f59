//! Health checks: the health service for probes, optionally on a separate port, and the client of
//! `gatekey health`.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::{self, JoinHandle, JoinSet},
    time,
};
use tokio_stream::{Stream, StreamExt as _, once, pending, wrappers::WatchStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Channel, Endpoint, Error as TransportError},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::service_fn;
use tracing::{info, warn};

use super::{
    StartError,
    config::Config,
    connection::{self, Rules},
    listener::Listener,
    streams::Budget,
    tls,
};
use crate::{
    api::{Infrastructure, Peer, READINESS},
    service::{replica::Replica, warm::Warmer},
};

/// Interval between checks of the lease.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Connect timeout and request timeout of `gatekey health`.
const PATIENCE: Duration = Duration::from_secs(2);

/// The readiness that probes receive.
pub struct Readiness {
    status: watch::Sender<ServingStatus>,
    following: JoinHandle<()>,
}

impl Readiness {
    /// Reports not ready until the cache is warm, then ready while the replica holds a lease
    /// granted by the database. Returns the health service that reports it.
    pub fn start(
        replica: Arc<Replica>,
        warmer: Warmer,
        warm_keys: usize,
    ) -> (Self, HealthServer<impl Health>) {
        let (status, readiness) = watch::channel(ServingStatus::NotServing);
        let following = tokio::spawn({
            let status = status.clone();
            async move {
                warmer.warm(warm_keys).await;
                follow(&replica, &status).await;
            }
        });
        let this = Self { status, following };
        (this, HealthServer::new(Statuses { readiness }))
    }

    /// Reports not ready from now on.
    pub async fn end(self) {
        self.following.abort();
        // Fails because the task was aborted.
        let _ = self.following.await;
        self.status.send_replace(ServingStatus::NotServing);
    }
}

/// The health of the process, which is SERVING while it responds, and of [`READINESS`].
struct Statuses {
    readiness: watch::Receiver<ServingStatus>,
}

#[tonic::async_trait]
impl Health for Statuses {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match &*request.get_ref().service {
            "" => ServingStatus::Serving,
            READINESS => *self.readiness.borrow(),
            _ => return Err(Status::not_found("")),
        };
        Ok(Response::new(response(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Sends the status and each change of it. An unknown service has the status SERVICE_UNKNOWN,
    /// as the protocol requires, and keeps it because no service is added while the server runs.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let constant = |status| once(Ok(response(status))).chain(pending());
        Ok(Response::new(match &*request.get_ref().service {
            "" => Box::pin(constant(ServingStatus::Serving)),
            READINESS => {
                let statuses = WatchStream::new(self.readiness.clone());
                Box::pin(statuses.map(|status| Ok(response(status))))
            }
            _ => Box::pin(constant(ServingStatus::ServiceUnknown)),
        }))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

async fn follow(replica: &Replica, status: &watch::Sender<ServingStatus>) {
    let mut ready = false;
    let mut looks = time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let held = !replica.lease_left().is_zero();
        if held == ready {
            continue;
        }
        ready = held;
        if ready {
            status.send_replace(ServingStatus::Serving);
            info!("ready");
        } else {
            status.send_replace(ServingStatus::NotServing);
            warn!("not ready: the lease has ended, and the store does not answer");
        }
    }
}

/// Serves probes on a separate port until the handle is dropped. Runs on the current runtime, so
/// that it does not depend on the serving threads.
pub fn answer(
    port: Listener,
    health: Routes,
    rules: Rules,
    budget: Budget,
) -> AbortOnDropHandle<()> {
    let health = Infrastructure::new(health, rules.stop.clone());
    AbortOnDropHandle::new(task::spawn(async move {
        let mut open = JoinSet::new();
        let serve = |stream, peer: SocketAddr, admitted| {
            while open.try_join_next().is_some() {}
            let service = TowerToHyperService::new(health.for_probes(Peer::new(peer.ip(), None)));
            let (rules, budget) = (rules.clone(), budget.clone());
            open.spawn(async move {
                let plain = async |stream, _| Ok(stream);
                let service = |_: &_| service;
                // The client reports a broken connection.
                let _ = connection::serve(stream, admitted, plain, service, &rules, budget).await;
            });
        };
        port.accept(&rules.stop, serve).await;
    }))
}

/// Queries the readiness of the server that these settings describe, on the health port if there is
/// one.
///
/// # Errors
/// Fails if the server is not ready or does not respond.
pub async fn ask(config: &Config) -> Result<(), StartError> {
    let request = HealthCheckRequest {
        service: READINESS.to_owned(),
    };
    let channel = connect(config)
        .await
        .map_err(|_| StartError::NotReady("it does not take connections"))?;
    let answer = HealthClient::new(channel)
        .check(request)
        .await
        .map_err(|_| StartError::NotReady("it does not answer"))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(StartError::NotReady("it says that it is not")),
    }
}

async fn connect(config: &Config) -> Result<Channel, TransportError> {
    let mut address = config.health_listen.unwrap_or(config.listen);
    if address.ip().is_unspecified() {
        // A server that listens on all addresses also responds on this one.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let own = config.tls_cert_file.clone();
    let Some(own) = own.filter(|_| config.health_listen.is_none()) else {
        return endpoint.connect().await;
    };
    let encrypted = service_fn(move |_| {
        let own = own.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            io::Result::Ok(TokioIo::new(tls::connect(&own, stream).await?))
        }
    });
    endpoint.connect_with_connector(encrypted).await
}
