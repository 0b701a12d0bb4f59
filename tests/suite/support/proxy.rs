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
    acceptor: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port, and passes everything on to `store`.
    pub async fn start(store: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (network, seen) = watch::channel(Network::Whole);
        Proxy {
            addr: listener.local_addr().expect("it is bound"),
            network,
            acceptor: tokio::spawn(accept(listener, store, seen)),
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(listener: TcpListener, store: SocketAddr, network: watch::Receiver<Network>) {
    let mut connections = JoinSet::new(); // they end with this task
    loop {
        let Ok((replica, _)) = listener.accept().await else {
            continue;
        };
        connections.spawn(connect(replica, store, network.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Carries one connection until an end of it closes or it is cut.
async fn connect(replica: TcpStream, store: SocketAddr, network: watch::Receiver<Network>) {
    let carried = async {
        let store = TcpStream::connect(store).await.ok()?;
        store.set_nodelay(true).ok()?;
        replica.set_nodelay(true).ok()?;
        let (from_replica, to_replica) = replica.into_split();
        let (from_store, to_store) = store.into_split();
        let seen = network.clone();
        tokio::select! {
            () = carry(from_replica, to_store, Direction::ToStore, seen.clone()) => {}
            () = carry(from_store, to_replica, Direction::ToReplica, seen) => {}
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
        if passing.await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
