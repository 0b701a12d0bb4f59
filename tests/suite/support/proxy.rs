//! A TCP proxy between a replica and its database: the network, where it can be made to fail.
//!
//! What is on its way when a stall begins arrives when the stall ends, as it does on a network that loses packets and
//! then gets better: an old answer can come very late.

use std::{net::SocketAddr, time::Duration};

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

/// A running proxy; ends, with all its connections, on drop.
pub struct Proxy {
    addr: SocketAddr,
    network: watch::Sender<Network>,
    /// How often the connections that stood were forgotten.
    forgotten: watch::Sender<u32>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, and passes everything on to `store`.
    pub async fn start(store: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (network, seen) = watch::channel(Network::Whole);
        let (forgotten, forgets) = watch::channel(0);
        Proxy {
            addr: listener.local_addr().expect("it is bound"),
            network,
            forgotten,
            acceptor: tokio::spawn(accept(listener, store, seen, forgets)),
        }
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(
    listener: TcpListener,
    store: SocketAddr,
    network: watch::Receiver<Network>,
    mut forgets: watch::Receiver<u32>,
) {
    let mut connections = JoinSet::new(); // they end with this task
    loop {
        let Ok((replica, _)) = listener.accept().await else {
            continue;
        };
        forgets.mark_unchanged();
        connections.spawn(connect(replica, store, network.clone(), forgets.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Carries one connection until an end of it closes or it is cut.
async fn connect(
    replica: TcpStream,
    store: SocketAddr,
    network: watch::Receiver<Network>,
    forgets: watch::Receiver<u32>,
) {
    let carried = async {
        let store = TcpStream::connect(store).await.ok()?;
        store.set_nodelay(true).ok()?;
        replica.set_nodelay(true).ok()?;
        let (from_replica, to_replica) = replica.into_split();
        let (from_store, to_store) = store.into_split();
        let seen = network.clone();
        tokio::select! {
            () = carry(from_replica, to_store, Direction::ToStore, seen.clone(), forgets.clone()) => {}
            () = carry(from_store, to_replica, Direction::ToReplica, seen, forgets) => {}
        }
        Some(())
    };
    let mut cut = network.clone();
    tokio::select! {
        _ = carried => {}
        _ = cut.wait_for(|network| *network == Network::Cut) => {}
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut network: watch::Receiver<Network>,
    forgets: watch::Receiver<u32>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let slow = match *network.borrow() {
            Network::Slow(by) => by,
            _ => Duration::ZERO,
        };
        sleep(slow).await;
        let passing = network.wait_for(|network| match (network, direction) {
            (Network::Stalled { to_store, .. }, Direction::ToStore) => !to_store,
            (Network::Stalled { to_replica, .. }, Direction::ToReplica) => !to_replica,
            _ => true,
        });
        let passes = passing.await.is_ok();
        if forgets.has_changed().unwrap_or(false) {
            continue; // it is read, so that nobody's window tells, and lost
        }
        if !passes || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // An end of a forgotten connection is not told to the other one.
    if forgets.has_changed().unwrap_or(false) {
        std::future::pending::<()>().await;
    }
}
