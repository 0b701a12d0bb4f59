//! A TCP proxy between a replica and its database: the network, where it can be made to fail.
//!
//! What is on its way when a stall begins arrives when the stall ends, as it does on a network that loses packets and
//! then gets better: an old answer can come very late.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// What happens to what passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// Nothing.
    Whole,
    /// Every connection is closed, and so is each new one.
    Cut,
    /// Everything arrives this much later.
    Slow(Duration),
    /// Connections stand and new ones are taken, but nothing arrives where it is meant to.
    Stalled { to_store: bool, to_replica: bool },
}

#[derive(Clone, Copy)]
enum Direction {
    ToStore,
    ToReplica,
}

/// Words that hold up the connection that sends them next, until the other end of the channel is dropped.
type Trap = Arc<Mutex<Option<(&'static str, watch::Receiver<()>)>>>;

/// What a connection needs to know while it stands.
#[derive(Clone)]
struct Seen {
    network: watch::Receiver<Network>,
    forgets: watch::Receiver<u32>,
    trap: Trap,
}

/// A running proxy; ends, with all its connections, on drop.
pub struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    /// How often the connections that stood were forgotten.
    forgotten: watch::Sender<u32>,
    trap: Trap,
    /// Where new connections lead.
    store: watch::Sender<SocketAddr>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, and passes everything on to `store`.
    pub async fn start(store: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (network, forgotten) = (watch::Sender::new(Network::Whole), watch::Sender::new(0));
        let (trap, store) = (Trap::default(), watch::Sender::new(store));
        let seen = Seen {
            network: network.subscribe(),
            forgets: forgotten.subscribe(),
            trap: Arc::clone(&trap),
        };
        Proxy {
            addr: listener.local_addr().expect("it is bound"),
            network,
            forgotten,
            trap,
            acceptor: tokio::spawn(accept(listener, store.subscribe(), seen)),
            store,
        }
    }

    /// New connections lead to this server from now on, as behind a fixed address after a failover.
    pub fn lead_to(&self, store: SocketAddr) {
        self.store.send_replace(store);
    }

    /// Closes the connections that stand.
    pub async fn cut_once(&self) {
        self.set(Network::Cut);
        sleep(Duration::from_millis(50)).await;
        self.set(Network::Whole);
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on this happens, to connections that stand, too.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// The connections that stand now carry nothing any more, and neither end hears of it: the machine at the other
    /// end is gone, or one in between has lost its table. New ones are whole.
    pub fn forget(&self) {
        self.forgotten.send_modify(|times| *times += 1);
    }

    /// The first connection on which a replica sends these words sends nothing after them until what is returned is
    /// dropped.
    pub fn hold_after(&self, words: &'static str) -> watch::Sender<()> {
        let (held, release) = watch::channel(());
        *self.trap.lock().expect("no panic") = Some((words, release));
        held
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, store: watch::Receiver<SocketAddr>, mut seen: Seen) {
    let mut connections = JoinSet::new(); // they end with this task
    loop {
        let Ok((replica, _)) = listener.accept().await else {
            continue;
        };
        seen.forgets.mark_unchanged();
        let store = *store.borrow();
        connections.spawn(connect(replica, store, seen.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Carries one connection until an end of it closes or it is cut.
async fn connect(replica: TcpStream, store: SocketAddr, seen: Seen) {
    let mut network = seen.network.clone();
    let carried = async {
        let store = TcpStream::connect(store).await.ok()?;
        store.set_nodelay(true).ok()?;
        replica.set_nodelay(true).ok()?;
        let (from_replica, to_replica) = replica.into_split();
        let (from_store, to_store) = store.into_split();
        tokio::select! {
            () = carry(from_replica, to_store, Direction::ToStore, seen.clone()) => {}
            () = carry(from_store, to_replica, Direction::ToReplica, seen) => {}
        }
        Some(())
    };
    tokio::select! {
        _ = carried => {}
        _ = network.wait_for(|network| *network == Network::Cut) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut seen: Seen,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let sent = &buffer[..read];
        let slow = match *seen.network.borrow() {
            Network::Slow(by) => by,
            _ => Duration::ZERO,
        };
        sleep(slow).await;
        let passing = seen.network.wait_for(|network| match (network, direction) {
            (Network::Stalled { to_store, .. }, Direction::ToStore) => !to_store,
            (Network::Stalled { to_replica, .. }, Direction::ToReplica) => !to_replica,
            _ => true,
        });
        let passes = passing.await.is_ok();
        if seen.is_forgotten() {
            continue; // it is read, so that nobody's window tells, and lost
        }
        if !passes || to.write_all(sent).await.is_err() {
            return;
        }
        if let (Direction::ToStore, Some(mut release)) = (direction, seen.trapped(sent)) {
            while release.changed().await.is_ok() {}
        }
    }
    // An end of a forgotten connection is not told to the other one.
    if seen.is_forgotten() {
        std::future::pending::<()>().await;
    }
}

impl Seen {
    fn is_forgotten(&self) -> bool {
        self.forgets.has_changed().unwrap_or(false)
    }

    /// What to wait for, if these are the words that somebody waits for.
    fn trapped(&self, sent: &[u8]) -> Option<watch::Receiver<()>> {
        let mut trap = self.trap.lock().expect("no panic");
        let said = |words: &str| {
            sent.windows(words.len())
                .any(|part| part == words.as_bytes())
        };
        let (_, release) = trap.take_if(|(words, _)| said(words))?;
        Some(release)
    }
}
