//! Serving threads: one single-threaded runtime a core.
//!
//! One acceptor gives each connection to the worker that has the fewest; it stays there. (gRPC
//! clients hold few long connections: a hash over them, as SO_REUSEPORT's, would leave cores
//! idle.) Here, too, is what tonic has no limit for: connections, and how long a connection may
//! stay silent before it has said anything.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::mpsc,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    grpc::House,
    meter::{Page, Tell},
};

/// How long a new connection may take to say that it speaks HTTP/2.
const PREFACE_PATIENCE: Duration = Duration::from_secs(10);
/// How much it says then (RFC 9113, 3.4), and how often that is looked for once it has begun.
const PREFACE_LENGTH: usize = 24;
const PREFACE_LOOK: Duration = Duration::from_millis(20);
/// The most connections at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 16_384;
/// The most calls at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// A peer that does not answer a ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that a call's headers may have, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;
/// How long the acceptor waits when there are no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// The serving threads.
pub struct Workers {
    threads: Vec<Worker>,
    connections: Arc<Connections>,
}

/// The connections, counted.
pub struct Connections {
    /// Those that are open, by thread.
    open: Vec<Arc<AtomicUsize>>,
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Connections {
    fn open(&self) -> usize {
        let open = self.open.iter();
        open.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Tell for Connections {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(
            "gatekey_connections",
            "Connections that are open",
            self.open(),
        )?;
        page.counter(
            "gatekey_connections_accepted_total",
            "Connections that were accepted",
            self.accepted.load(Ordering::Relaxed),
        )?;
        page.counter(
            "gatekey_connections_refused_total",
            "Connections that were closed at once, or not accepted, for there were too many",
            self.refused.load(Ordering::Relaxed),
        )
    }
}

struct Worker {
    connections: Arc<AtomicUsize>,
    give: mpsc::UnboundedSender<(std::net::TcpStream, SocketAddr)>,
    thread: thread::JoinHandle<()>,
}

impl Workers {
    /// Starts `count` threads, which serve what they are given until `stop`, and then what is
    /// under way until `cut`.
    ///
    /// # Errors
    /// When the machine gives no thread or no runtime.
    pub fn start(
        count: usize,
        house: &House,
        stop: &CancellationToken,
        cut: &CancellationToken,
    ) -> io::Result<Self> {
        let threads = (0..count).map(|number| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let connections = Arc::new(AtomicUsize::new(0));
            let (give, given) = mpsc::unbounded_channel();
            let serving = Serving {
                house: house.clone(),
                connections: Arc::clone(&connections),
                stop: stop.clone(),
            };
            let cut = cut.clone();
            let thread = thread::Builder::new()
                .name(format!("serving-{number}"))
                .spawn(move || {
                    runtime.block_on(cut.run_until_cancelled(serving.run(given)));
                })?;
            Ok(Worker {
                connections,
                give,
                thread,
            })
        });
        let threads = threads.collect::<io::Result<Vec<Worker>>>()?;
        let open = threads.iter();
        let connections = Connections {
            open: open.map(|worker| Arc::clone(&worker.connections)).collect(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Ok(Self {
            threads,
            connections: Arc::new(connections),
        })
    }

    /// The connections, counted.
    pub fn connections(&self) -> Arc<Connections> {
        Arc::clone(&self.connections)
    }

    /// Gives each new connection to the worker that has the fewest, until `stop`.
    pub async fn accept(&self, listener: &TcpListener, stop: &CancellationToken) {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => self.give(stream, peer),
                Err(error) => {
                    // Of the connection, or of the process, which has no descriptors left.
                    self.connections.refused.fetch_add(1, Ordering::Relaxed);
                    warn!(%error, "a connection could not be accepted");
                    time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// Waits until every thread has ended.
    pub fn join(self) {
        for worker in self.threads {
            drop(worker.give);
            // It ended by a panic, which has been printed.
            let _ = worker.thread.join();
        }
    }

    fn give(&self, stream: TcpStream, peer: SocketAddr) {
        let load = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let Some(least) = self.threads.iter().min_by_key(load) else {
            return;
        };
        if self.connections.open() >= CONNECTIONS_MAX {
            self.connections.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.connections.accepted.fetch_add(1, Ordering::Relaxed);
        // Taken off this runtime, to be put on the worker's.
        if let Ok(stream) = stream.into_std() {
            least.connections.fetch_add(1, Ordering::Relaxed);
            // It fails only while everything stops.
            let _ = least.give.send((stream, peer));
        }
    }
}

/// What a serving thread does.
struct Serving {
    house: House,
    connections: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Serving {
    async fn run(self, mut given: mpsc::UnboundedReceiver<(std::net::TcpStream, SocketAddr)>) {
        let open = TaskTracker::new();
        while let Some(Some((stream, peer))) = self.stop.run_until_cancelled(given.recv()).await {
            let (house, stop) = (self.house.clone(), self.stop.clone());
            let connections = Arc::clone(&self.connections);
            open.spawn(async move {
                // A connection that breaks is its client's to tell of.
                let _ = serve(stream, peer, &house, &stop).await;
                connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        open.close();
        open.wait().await;
    }
}

/// Serves one connection to its end, or until it has finished what it had begun at `stop`.
async fn serve(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    house: &House,
    stop: &CancellationToken,
) -> io::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    stream.set_nodelay(true)?;
    let spoke = stop.run_until_cancelled(time::timeout(PREFACE_PATIENCE, preface(&stream)));
    let Some(Ok(Ok(()))) = spoke.await else {
        return Ok(());
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .auto_date_header(false)
        .serve_connection(
            TokioIo::new(stream),
            TowerToHyperService::new(house.front(peer)),
        );
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    ended.map_err(io::Error::other)
}

/// Waits for a client's preface, which hyper would wait for without end.
async fn preface(stream: &TcpStream) -> io::Result<()> {
    let mut said = [0; PREFACE_LENGTH];
    loop {
        match stream.peek(&mut said).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            PREFACE_LENGTH => return Ok(()),
            _ => time::sleep(PREFACE_LOOK).await,
        }
    }
}
