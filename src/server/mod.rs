//! The server: startup, serving and shutdown.
//!
//! `run` contains the startup and shutdown sequence, from top to bottom.

mod admission;
mod authority;
pub mod config;
mod connection;
mod descriptors;
mod environment;
mod first_steps;
pub mod health;
mod listener;
mod metrics_endpoint;
mod ports;
mod preface;
mod reload;
mod routes_file;
mod secret_files;
mod signals;
mod streams;
mod telemetry;
mod tls;
mod workers;

use std::{io, path::Path, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    runtime::Runtime,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};

use self::{
    admission::Admission,
    config::{Config, ValidateAuth},
    connection::Rules,
    health::Readiness,
    ports::{Addresses, Reservations},
    preface::Speaks,
    routes_file::RoutesFile,
    secret_files::KeyFiles,
    signals::Signals,
    streams::{Budget, Refusals},
    telemetry::{Telemetry, TelemetryError},
    tls::Tls,
    workers::Workers,
};
use crate::{
    api::{
        Api, App, Calls, DESCRIPTORS, Infrastructure, MESSAGE_MAX, ext_authz::GatewayRules,
        trace::TraceLayer,
    },
    domain::{
        caller::TenantSet,
        clock::{Clock as _, SystemClock, Timestamp},
        page::Page,
    },
    metrics::Collect,
    service::{
        cache::Cache,
        event_log::Log,
        failpoint::Failpoints,
        keyring::Keyring,
        replica::Replica,
        secret::{
            AdminToken, Peppers, Secrets,
            pepper_check::{self, PepperMismatch},
            pepper_migration::PepperMigration,
        },
        usage::{Usage, Writing},
        validator::Validator,
        warm::Warmer,
    },
    store::{self, Engine, EventQuery, LogPosition, OpenError, Store, StoreError},
};

/// Maximum time for which startup retries a database that does not respond.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// Maximum clock difference between replicas that startup accepts.
const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// Timeout for closing the database.
const CLOSE: Duration = Duration::from_secs(2);
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Delay between NOT_SERVING and closing the listener. Clients that watch the health status or
/// receive endpoint updates disconnect in this time and need no GOAWAY, which makes some clients
/// lose calls.
const LEAVE: Duration = Duration::from_millis(100);
/// Maximum time without an open stream, for connections on the main port and on the health port.
const IDLE: Duration = Duration::from_mins(1);
const PROBE_IDLE: Duration = Duration::from_secs(10);

/// The reason why gatekey could not start, in one line.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("{variable} is invalid: {value}: {why}")]
    Setting {
        variable: &'static str,
        value: String,
        why: String,
    },
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("the store failed during the start: {0}")]
    Store(#[from] StoreError),
    #[error("the process cannot be set up: {0}")]
    Process(#[from] io::Error),
    #[error(
        "the clock is wrong: it says {now}, before the newest event in the database, of {newest}: set the clock of this machine, or of the one that wrote the event"
    )]
    Clock { now: Timestamp, newest: Timestamp },
    #[error("the server is not ready: {0}")]
    NotReady(&'static str),
}

impl StartError {
    /// Returns the error for an invalid setting that names a file.
    fn file(variable: &'static str, path: &Path, why: String) -> Self {
        Self::Setting {
            variable,
            value: path.display().to_string(),
            why,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then finishes the work in progress.
///
/// # Errors
/// Fails if the server cannot start.
pub fn serve(runtime: &Runtime, config: &Config) -> Result<(), StartError> {
    let telemetry = runtime.block_on(async { telemetry::start(config.log, config.log_format) })?;
    for (variable, nearest) in config::unknown_variables() {
        warn!("{variable} is not a setting of gatekey; the nearest setting is {nearest}");
    }
    let served = runtime.block_on(run(config, &telemetry));
    telemetry.stop();
    served
}

/// Migrates the database schema to the current version. On request, deletes the pepper checks or
/// marks the database as restored from a backup.
///
/// # Errors
/// Fails if one of these steps fails.
pub async fn migrate(
    config: &Config,
    forget_peppers: bool,
    restored: bool,
) -> Result<(), StartError> {
    let store = open_store(config).await?;
    if forget_peppers {
        store.forget_pepper_checks().await?;
    }
    if restored {
        let LogPosition { store_id, head } = store.mark_restored().await?;
        println!(
            "The database has the new store_id {store_id}. Its log ends with revision {head}: what \
             was changed after the backup is lost. Keys that were revoked since then work again: \
             revoke them again."
        );
    }
    store.close().await;
    Ok(())
}

async fn run(config: &Config, telemetry: &Telemetry) -> Result<(), StartError> {
    let started = SystemClock.now();
    let signals = Signals::start()?;
    let tls = Tls::start(config)?;
    let routes = RoutesFile::start(config.routes_file.as_deref())?;
    // Before the database and the secret files, so that a port in use leaves no new files behind.
    let ports = Reservations::bind(config)?;
    let (store, files) = tokio::select! {
        opened = open(config) => opened?,
        // No work has begun.
        _ = signals.first() => return Ok(()),
    };
    let KeyFiles {
        admin,
        peppers,
        made,
    } = files;
    let ports = ports.listen(config)?;
    let connections = ports.connections();
    let addresses = ports.addresses()?;
    let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
    let Services {
        api,
        replica,
        following,
        warmer,
        writing,
    } = start_services(config, &store, admin, peppers, routes.rules(), &stop);

    let warm_keys = config.warm_keys.min(config.cache_keys);
    let (readiness, health) = Readiness::start(Arc::clone(&replica), warmer, warm_keys);
    let health = Routes::new(health.max_decoding_message_size(MESSAGE_MAX));
    let refusals = Arc::new(Refusals::default());
    // Uses `cut` because probes must observe the shutdown until its end.
    let rules = Rules::new(config, PROBE_IDLE, Speaks::Plaintext, &cut);
    let _probes = ports.probes.map(|port| {
        let budget = Budget::share(1, &refusals);
        health::answer(port, health.clone(), rules.clone(), budget)
    });
    let app = App::new(
        api,
        Infrastructure::new(with_reflection(health)?, stop.clone()),
        TraceLayer::new(telemetry.tracing()),
    );
    let speaks = tls.as_ref().map_or(Speaks::Plaintext, |_| Speaks::Tls);
    let rules = Rules::new(config, IDLE, speaks, &stop);
    let workers = Workers::start(
        config.workers(),
        &app,
        tls.as_ref(),
        &rules,
        &refusals,
        &cut,
    )?;
    let handshakes = tls.as_ref().map(Tls::handshakes).unwrap_or_default();
    let reloads = routes.reloads();
    let tellers = [
        Arc::new(app) as Arc<dyn Collect>,
        Arc::new(connections),
        refusals,
        handshakes,
        reloads,
    ];
    let telling = ports
        .readers
        .map(|port| metrics_endpoint::start(port, started, tellers));
    announce(config, &addresses, tls.is_some());
    if store.count_keys(1).await.is_ok_and(|keys| keys == 0) {
        first_steps::print(&made, config, addresses.main);
    }

    let accept = || {
        let give = |stream, peer, admitted| workers.give(stream, peer, admitted);
        ports.main.accept(&stop, give)
    };
    let asked = tokio::select! {
        () = accept() => "none",
        asked = signals.first() => asked,
    };
    // Shutdown. New calls arrive until load balancers have observed NOT_SERVING.
    info!(signal = asked, "stopping");
    take_leave(readiness, accept()).await;
    let connections = ports.main.admission();
    drop(ports.main);
    stop.cancel();
    finish(workers, &connections, config.drain, &cut).await?;
    drop(telling);
    // This replica serves no calls any more, so other replicas must not wait for it.
    following.abort();
    let _ = following.await;
    replica.leave().await;
    // No key is used any more, so usage writing can finish.
    writing.finish().await;
    // Calls that were cut off may still hold database connections. Their statements end with this
    // process.
    let _ = time::timeout(CLOSE, store.close()).await;
    info!("stopped");
    Ok(())
}

/// Logs the addresses of all ports.
fn announce(config: &Config, addresses: &Addresses, tls: bool) {
    info!(
        listen = %addresses.main,
        tls,
        health_listen = addresses.probes.map(tracing::field::display),
        metrics_listen = addresses.readers.map(tracing::field::display),
        store = config.shown_database_url(),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
}

/// Opens the database and reads the secret files.
async fn open(config: &Config) -> Result<(Arc<dyn Store>, KeyFiles), StartError> {
    let store = open_to_serve(config).await?;
    let files = read_key_files(config, &*store).await?;
    Ok((store, files))
}

/// The services that calls use, and the background tasks.
struct Services {
    api: Api,
    replica: Arc<Replica>,
    following: JoinHandle<()>,
    warmer: Warmer,
    writing: Writing,
}

fn start_services(
    config: &Config,
    store: &Arc<dyn Store>,
    admin: AdminToken,
    peppers: Peppers,
    gateway_rules: GatewayRules,
    stop: &CancellationToken,
) -> Services {
    let (store, clock) = (|| Arc::clone(store), Arc::new(SystemClock));
    let secrets = Arc::new(Secrets::new(peppers, config.argon2));
    let cache = Arc::new(Cache::new(config.cache_keys, Failpoints::from_env()));
    let replica = Replica::new(store(), Arc::clone(&cache), clock.clone(), config.lease);
    let replica = Arc::new(replica);
    let follower = Arc::clone(&replica);
    let following = tokio::spawn(async move { follower.run().await });
    let warmer = Warmer {
        store: store(),
        secrets: Arc::clone(&secrets),
        cache: Arc::clone(&cache),
        clock: clock.clone(),
    };
    let pepper_migration = PepperMigration::start(store(), &secrets, clock.clone());
    let (keys, cached) = (Arc::clone(&secrets), Arc::clone(&cache));
    let (usage, writing) = Usage::start(store());
    let api = Api {
        validator: Validator::new(store(), secrets, cache, clock.clone(), pepper_migration),
        log: Log::new(store(), clock.clone(), replica.applied()),
        keyring: Keyring::new(store(), keys, cached, clock.clone()),
        replica: Arc::clone(&replica),
        usage,
        clock,
        admin,
        validate_auth: config.validate_auth == ValidateAuth::Required,
        calls: Calls::default(),
        gateway_rules,
        stop: stop.clone(),
    };
    Services {
        api,
        replica,
        following,
        warmer,
        writing,
    }
}

/// Opens the database. Retries for a limited time if it does not respond.
async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match store::open(&config.database_url).await {
            Ok(store) => return Ok(store),
            Err(error) if error.may_pass() && started.elapsed() < STORE_PATIENCE => {
                if !told {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "the store does not answer yet: trying for 30 s");
                    told = true;
                }
                time::sleep(STORE_RETRY).await;
            }
            Err(error) => return Err(bad_store(config, &error)),
        }
    }
}

/// Opens the database after checking the clock against it.
async fn open_to_serve(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let store = open_store(config).await?;
    check_clock(&*store).await?;
    Ok(store)
}

/// Waits until the wall clock has reached the newest event, and fails if that would take too long.
/// With a clock that was set back, expired keys would be valid again.
async fn check_clock(store: &dyn Store) -> Result<(), StartError> {
    let query = EventQuery {
        tenants: TenantSet::All,
        key_id: None,
        owner_id: None,
        actor: None,
        kinds: Vec::new(),
        after: None,
        before: None,
    };
    let newest = Page {
        after: None,
        size: 1,
    };
    let Some(newest) = store.list_events(&query, &newest).await?.pop() else {
        return Ok(());
    };
    let (now, newest) = (SystemClock.now(), newest.change.at);
    let behind = newest.since(now);
    if behind > CLOCK_SKEW {
        return Err(StartError::Clock { now, newest });
    }
    if !behind.is_zero() {
        warn!(%now, %newest, "the clock is behind the newest event: waiting until it is not");
        time::sleep(behind).await;
    }
    Ok(())
}

/// Reads the two secret files, and checks that the peppers match the database.
async fn read_key_files(config: &Config, store: &dyn Store) -> Result<KeyFiles, StartError> {
    let engine = Engine::of(&config.database_url).map_err(|error| bad_store(config, &error))?;
    let files = secret_files::read(config, engine, store).await?;
    let checked = pepper_check::check(store, &SystemClock, files.peppers).await;
    let peppers = checked.map_err(|mismatch| bad_pepper(config, mismatch))?;
    Ok(KeyFiles { peppers, ..files })
}

/// Reports not ready, and still accepts connections for a moment.
async fn take_leave(readiness: Readiness, accepting: impl Future<Output = ()>) {
    readiness.end().await;
    let _ = time::timeout(LEAVE, accepting).await;
}

/// Waits for the calls in flight. Cuts off those that exceed the drain time or only wait for their
/// client.
async fn finish(
    workers: Workers,
    connections: &Admission,
    drain: Duration,
    cut: &CancellationToken,
) -> io::Result<()> {
    let mut ended = tokio::task::spawn_blocking(|| workers.join());
    tokio::select! {
        ended = &mut ended => return ended.map_err(io::Error::other),
        () = connections.quiet() => {}
        () = time::sleep(drain) => warn!("calls were cut off that did not finish in time"),
    }
    cut.cancel();
    ended.await.map_err(io::Error::other)
}

fn bad_store(config: &Config, error: &OpenError) -> StartError {
    StartError::Setting {
        variable: "GATEKEY_DATABASE_URL",
        value: config.shown_database_url(),
        why: error.to_string(),
    }
}

fn bad_pepper(config: &Config, mismatch: PepperMismatch) -> StartError {
    match mismatch {
        PepperMismatch::Store(error) => error.into(),
        PepperMismatch::Unfit(unfit) => StartError::file(
            "GATEKEY_PEPPER_FILE",
            &config.pepper_file,
            unfit.to_string(),
        ),
    }
}

fn with_reflection(routes: Routes) -> Result<Routes, StartError> {
    let v1 = reflection().build_v1().map_err(reflection_error)?;
    let v1alpha = reflection().build_v1alpha().map_err(reflection_error)?;
    Ok(routes
        .add_service(v1.max_decoding_message_size(MESSAGE_MAX))
        .add_service(v1alpha.max_decoding_message_size(MESSAGE_MAX)))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
        // Needed by grpcurl to show error details.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

fn reflection_error(error: tonic_reflection::server::Error) -> StartError {
    StartError::Process(io::Error::other(error))
}
