//! Connection admission for one port: limits on open connections, in total and per network, and
//! eviction of idle connections in favour of new ones.
//!
//! A port at a limit evicts an idle connection instead of refusing the new one, in this order:
//! connections that have not completed their preface for a while, then connections of the network
//! with the most connections. Within a network, the least used connection is evicted first, and of
//! those the oldest; fresh connections are evicted last. A flood from a few networks therefore
//! evicts its own connections. A connection with an open stream is never closed here.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{self, Instant},
};

/// Delay before a search that found no idle connection is repeated, because a search visits every
/// connection.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);
/// A search returns at most one connection in this many, or [`FOUND_MIN`] if that is more.
const FOUND_SHARE: usize = 64;
const FOUND_MIN: usize = 16;
/// Connections that were opened or used more recently than this are evicted after the others.
const FRESH: Duration = Duration::from_secs(1);
/// Time without a running handler or response progress after which the port counts as quiet.
const QUIET: Duration = Duration::from_millis(700);
const QUIET_CHECK: Duration = Duration::from_millis(50);
/// Bounds the wait of a new connection for evicted ones to close: number and interval of checks.
const SETTLE_CHECKS: u32 = 50;
const SETTLE_CHECK: Duration = Duration::from_millis(2);

/// The connection limits of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Maximum number of open connections.
    pub max: usize,
    /// Maximum number of open connections from one network.
    pub per_network: usize,
    /// Number of evicted connections that may close gracefully, in addition to `max`.
    pub closing: usize,
}

/// The reason why a connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// The port is full, and all its connections have open streams.
    Full,
    /// The network has reached its limit, and all its connections have open streams.
    Network,
    /// The kernel returned an error, for example because no file descriptor was left.
    NotAccepted,
}

/// The reason why a connection was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The client closed it, or the connection broke.
    Client,
    /// The client did not complete the TLS handshake and the HTTP/2 preface in time.
    Preface,
    /// The client does not speak the protocol of the port.
    Protocol,
    /// It had no open stream for too long.
    Idle,
    /// It reached the maximum age.
    Age,
    /// It was idle and was evicted in favour of a new connection.
    Evicted,
    /// The server is stopping.
    Stop,
}

impl Rejected {
    pub const ALL: [(Self, &str); 3] = [
        (Self::Full, "full"),
        (Self::Network, "address"),
        (Self::NotAccepted, "not_accepted"),
    ];
}

impl Closed {
    pub const ALL: [(Self, &str); 7] = [
        (Self::Client, "client"),
        (Self::Preface, "preface_timeout"),
        (Self::Protocol, "protocol"),
        (Self::Idle, "idle"),
        (Self::Age, "age"),
        (Self::Evicted, "evicted"),
        (Self::Stop, "stop"),
    ];
}

/// The part of an address that one network user is assumed to control: an IPv4 address, or an IPv6
/// /64. An IPv4-mapped IPv6 address counts as its IPv4 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Network {
    V4(u32),
    V6(u128),
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6(address.to_bits() >> 64),
        }
    }
}

/// The connections of one port.
pub struct Admission {
    bounds: Bounds,
    table: Mutex<Table>,
    accepted: AtomicU64,
    refused: [AtomicU64; Rejected::ALL.len()],
    closed: [AtomicU64; Closed::ALL.len()],
}

impl Admission {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            table: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused: Default::default(),
            closed: Default::default(),
        })
    }

    /// Admits a connection from this address. Evicts an idle connection if a limit is reached.
    ///
    /// # Errors
    /// Fails if a limit is reached and no idle connection can be evicted.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Rejected> {
        let network = Network::of(address);
        let mut table = self.table();
        let state = table.make_room(network, self.bounds).map(|()| {
            table.next += 1;
            let state = Arc::new(State::new(table.next, network));
            table.insert(&state);
            state
        });
        drop(table);
        match state {
            Ok(state) => {
                self.accepted.fetch_add(1, Relaxed);
                Ok(Admitted {
                    admission: Arc::clone(self),
                    state,
                    closed: Closed::Client,
                })
            }
            Err(refused) => {
                self.refuse(refused);
                Err(refused)
            }
        }
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Counts a refused connection.
    pub fn refuse(&self, why: Rejected) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    /// Returns the number of open connections, including evicted ones that are still open.
    pub fn open(&self) -> usize {
        let table = self.table();
        table.open + table.closing.len()
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Returns the number of refused connections by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Rejected::ALL.iter().zip(&self.refused);
        counts.map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Returns the number of closed connections by reason.
    pub fn closes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Closed::ALL.iter().zip(&self.closed);
        counts.map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Waits briefly while too many evicted connections are still open, so that a burst of new
    /// connections is not refused before the threads of the evicted ones have run.
    pub async fn settle(&self) {
        for _ in 0..SETTLE_CHECKS {
            if self.table().closing.len() < 2 * self.bounds.closing {
                return;
            }
            time::sleep(SETTLE_CHECK).await;
        }
    }

    /// Waits until no handler has run and no response has made progress for a while. The remaining
    /// open streams then only wait for their clients.
    pub async fn quiet(&self) {
        let (mut seen, mut since) = (None, Instant::now());
        while since.elapsed() < QUIET {
            time::sleep(QUIET_CHECK).await;
            let (handlers, progress) = self.table().activity();
            if handlers > 0 || seen != Some(progress) {
                (seen, since) = (Some(progress), Instant::now());
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Poisoning is ignored because nothing that is called under the lock panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open connections, grouped by network.
#[derive(Default)]
struct Table {
    /// The id of the newest connection.
    next: u64,
    /// Number of open connections, excluding evicted ones.
    open: usize,
    networks: HashMap<Network, Group>,
    idle: Idle,
    /// Evicted connections that are still open, in eviction order.
    closing: VecDeque<Arc<State>>,
    /// Number of response frames on connections that have ended.
    progress: u64,
}

/// The open connections of one network.
#[derive(Default)]
struct Group {
    connections: HashMap<u64, Arc<State>>,
    idle: Idle,
}

impl Table {
    /// Evicts an idle connection if a new connection of this network would exceed a limit.
    fn make_room(&mut self, network: Network, bounds: Bounds) -> Result<(), Rejected> {
        let group = self.networks.get_mut(&network);
        let (idle, refused) = match group {
            Some(group) if group.connections.len() >= bounds.per_network => {
                let Group { connections, idle } = group;
                let all = connections.values().map(|state| (0, state));
                (idle.first(all), Rejected::Network)
            }
            _ if self.open >= bounds.max => {
                let groups = self.networks.values();
                let all = groups.flat_map(|Group { connections, .. }| {
                    let size = connections.len();
                    connections.values().map(move |state| (size, state))
                });
                (self.idle.first(all), Rejected::Full)
            }
            _ => return Ok(()),
        };
        // Connections evicted earlier are still open, although the oldest were cut.
        if self.closing.len() >= 2 * bounds.closing {
            return Err(refused);
        }
        let idle = idle.ok_or(refused)?;
        self.remove(&idle);
        idle.evicted.store(true, Relaxed);
        idle.evict.notify_one();
        self.closing.push_back(idle);
        if self.closing.len() > bounds.closing {
            // The second notification cuts the connection.
            self.closing[0].evict.notify_one();
            self.closing.rotate_left(1);
        }
        Ok(())
    }

    fn insert(&mut self, state: &Arc<State>) {
        let group = self.networks.entry(state.network).or_default();
        group.connections.insert(state.id, Arc::clone(state));
        self.open += 1;
    }

    fn remove(&mut self, state: &State) {
        let Some(group) = self.networks.get_mut(&state.network) else {
            return;
        };
        if group.connections.remove(&state.id).is_some() {
            self.open -= 1;
        }
        if group.connections.is_empty() {
            self.networks.remove(&state.network);
        }
    }

    /// Returns the number of running handlers, and a counter that grows with each response frame.
    fn activity(&self) -> (usize, u64) {
        let groups = self.networks.values();
        let open = groups.flat_map(|group| group.connections.values());
        open.chain(&self.closing)
            .fold((0, self.progress), |(handlers, progress), state| {
                (
                    handlers + state.handlers.load(Relaxed),
                    progress + state.progress.load(Relaxed),
                )
            })
    }
}

/// Idle connections in eviction order, as found by the last search.
#[derive(Default)]
struct Idle {
    found: VecDeque<Arc<State>>,
    search_after: Option<Instant>,
}

impl Idle {
    /// Returns the idle connection to evict first. `all` yields each connection with the size of
    /// its network.
    fn first<'a>(
        &mut self,
        all: impl Iterator<Item = (usize, &'a Arc<State>)>,
    ) -> Option<Arc<State>> {
        while let Some(state) = self.found.pop_front() {
            if state.idle_since().is_some() {
                return Some(state);
            }
        }
        let now = Instant::now();
        if self.search_after.is_some_and(|after| now < after) {
            return None;
        }
        let mut count = 0;
        let idle = all.inspect(|_| count += 1).filter_map(|(size, state)| {
            let since = state.idle_since()?;
            let (fresh, value) = (now.duration_since(since) < FRESH, state.value());
            let silent = value == 0 && !fresh;
            Some(((!silent, Reverse(size), fresh, value, since), state))
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable_by_key(|(order, _)| *order);
        idle.truncate((count / FOUND_SHARE).max(FOUND_MIN));
        let found = idle.into_iter().map(|(_, state)| Arc::clone(state));
        self.found = found.collect();
        self.search_after = self.found.is_empty().then(|| now + SEARCH_AGAIN);
        self.found.pop_front()
    }
}

/// The shared state of one connection. Its own thread writes it, except `evicted`; others read it.
struct State {
    id: u64,
    network: Network,
    opened: Instant,
    /// True once the client has completed the preface.
    greeted: AtomicBool,
    /// True once it has been evicted in favour of another connection.
    evicted: AtomicBool,
    /// True once the connection has ended.
    over: AtomicBool,
    evict: Notify,
    /// Number of open streams.
    streams: AtomicUsize,
    /// Number of streams whose handler is still running.
    handlers: AtomicUsize,
    /// Number of response frames so far.
    progress: AtomicU64,
    /// Time at which the last stream ended or the preface was completed, in milliseconds after
    /// `opened`.
    idle_since: AtomicU64,
}

impl State {
    fn new(id: u64, network: Network) -> Self {
        Self {
            id,
            network,
            opened: Instant::now(),
            greeted: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            over: AtomicBool::new(false),
            evict: Notify::new(),
            streams: AtomicUsize::new(0),
            handlers: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
        }
    }

    /// Returns the time since which the connection has been idle; `None` if it is not idle or must
    /// not be evicted.
    fn idle_since(&self) -> Option<Instant> {
        let taken = self.over.load(Relaxed) || self.evicted.load(Relaxed);
        if taken || self.streams.load(Relaxed) > 0 {
            return None;
        }
        Some(self.opened + Duration::from_millis(self.idle_since.load(Relaxed)))
    }

    /// Returns the use of an idle connection so far: 0 for none, 1 for a preface, 2 for a response.
    fn value(&self) -> u8 {
        u8::from(self.greeted.load(Relaxed)) + u8::from(self.progress.load(Relaxed) > 0)
    }

    fn note_idle(&self) {
        let elapsed = self.opened.elapsed().as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.idle_since.store(elapsed, Relaxed);
    }
}

/// A slot among the open connections, released when dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    state: Arc<State>,
    closed: Closed,
}

impl Admitted {
    /// Records that the client has completed its preface.
    pub fn greeted(&self) {
        self.state.note_idle();
        self.state.greeted.store(true, Relaxed);
    }

    /// Sets the reason why the connection is closed. The default is that the client closed it.
    pub fn closed(&mut self, why: Closed) {
        self.closed = why;
    }

    /// Waits until this connection is evicted. The connection ends gracefully when this returns for
    /// the first time, and at once when it returns for the second time.
    pub async fn evicted(&self) {
        self.state.evict.notified().await;
    }

    /// Returns the number of open streams.
    pub fn streams(&self) -> usize {
        self.state.streams.load(Relaxed)
    }

    /// Returns the time for which the connection has had no open stream; `None` while it has one.
    pub fn idle(&self) -> Option<Duration> {
        if self.streams() > 0 {
            return None;
        }
        let since = Duration::from_millis(self.state.idle_since.load(Relaxed));
        Some(self.state.opened.elapsed().saturating_sub(since))
    }

    /// Returns the stream counter of this connection.
    pub fn counter(&self) -> StreamCounter {
        StreamCounter(Arc::clone(&self.state))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.state.over.store(true, Relaxed);
        let mut table = self.admission.table();
        table.progress += self.state.progress.load(Relaxed);
        if self.state.evicted.load(Relaxed) {
            let id = self.state.id;
            table.closing.retain(|state| state.id != id);
        } else {
            table.remove(&self.state);
        }
        drop(table);
        self.admission.closed[self.closed as usize].fetch_add(1, Relaxed);
    }
}

/// Counts the streams of one connection.
#[derive(Clone)]
pub struct StreamCounter(Arc<State>);

impl StreamCounter {
    /// Counts a stream that opens now and whose handler is running.
    pub fn open(&self) -> OpenStream {
        self.0.streams.fetch_add(1, Relaxed);
        self.0.handlers.fetch_add(1, Relaxed);
        OpenStream {
            state: Arc::clone(&self.0),
            handled: false,
        }
    }
}

/// An open stream, counted until dropped.
pub struct OpenStream {
    state: Arc<State>,
    handled: bool,
}

impl OpenStream {
    /// Records that the handler has returned its response.
    pub fn handled(&mut self) {
        if !self.handled {
            self.handled = true;
            self.state.handlers.fetch_sub(1, Relaxed);
        }
    }

    /// Records that a response frame was taken for sending.
    pub fn progress(&self) {
        self.state.progress.fetch_add(1, Relaxed);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.handled();
        if self.state.streams.fetch_sub(1, Relaxed) == 1 {
            self.state.note_idle();
        }
    }
}
