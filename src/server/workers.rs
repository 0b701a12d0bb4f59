//! Serving threads: one single-threaded runtime a core.
//!
//! One acceptor gives each connection to the worker that has the fewest; it stays there. (gRPC
//! clients hold few long connections: a hash over them, as SO_REUSEPORT's, would leave cores
//! idle.) Here, too, is what tonic has no limit for: how many connections there are.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use hyper_util::service::TowerToHyperService;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::mpsc,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    ACCEPT_AGAIN,
    connection::{self, Term},
    tls::{self, Handshakes, Tls},
};
use crate::{
    grpc::{House, Peer},
    meter::{Page, Tell},
};

/// The most connections at once; one more is closed at once.
const CONNECTIONS_MAX: usize = 16_384;
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
    /// None are made in plaintext.
    handshakes: Arc<Handshakes>,
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
        )?;
        self.handshakes.tell(page)
    }
}

struct Worker {
    connections: Arc<AtomicUsize>,
    give: mpsc::UnboundedSender<(std::net::TcpStream, SocketAddr)>,
    thread: thread::JoinHandle<()>,
}

impl Workers {
    /// Starts `count` threads, which serve what they are given until the term's `stop`, and then
    /// what is under way until `cut`.
    ///
    /// # Errors
    /// When the machine gives no thread or no runtime.
    pub fn start(
        count: usize,
        house: &House,
        tls: Option<&Tls>,
        term: &Term,
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
                tls: tls.cloned(),
                term: term.clone(),
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
            handshakes: tls.map(Tls::handshakes).unwrap_or_default(),
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
#[derive(Clone)]
struct Serving {
    house: House,
    connections: Arc<AtomicUsize>,
    /// Plaintext without it.
    tls: Option<Tls>,
    term: Term,
}

impl Serving {
    async fn run(self, mut given: mpsc::UnboundedReceiver<(std::net::TcpStream, SocketAddr)>) {
        let (open, stop) = (TaskTracker::new(), &self.term.stop);
        while let Some(Some((stream, peer))) = stop.run_until_cancelled(given.recv()).await {
            let serving = self.clone();
            open.spawn(async move {
                // A connection that breaks is its client's to tell of.
                let _ = serving.serve(stream, peer).await;
                serving.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
        open.close();
        open.wait().await;
    }

    /// Serves one connection to its end.
    async fn serve(&self, stream: std::net::TcpStream, peer: SocketAddr) -> io::Result<()> {
        let stream = TcpStream::from_std(stream)?;
        let front = |name: Option<String>| {
            TowerToHyperService::new(self.house.front(Peer::new(peer.ip(), name)))
        };
        match &self.tls {
            None => {
                let plain = async |stream, _| Ok(stream);
                connection::serve(stream, plain, |_| front(None), &self.term).await
            }
            Some(tls) => {
                let named = |stream: &_| front(tls::name(stream));
                let secure = async |stream, until| tls.accept(stream, until).await;
                connection::serve(stream, secure, named, &self.term).await
            }
        }
    }
}
