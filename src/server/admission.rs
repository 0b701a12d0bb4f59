//! Admission of connections on one port: how many may be open, in all and from one network, and
//! which of them makes room for a new one.
//!
//! A full port does not refuse newcomers while it has idle connections: one of them is closed
//! instead: first one that has not completed its preface for a while, then one of the network that has
//! the most. Of one network, it is the one that was used least, and the oldest of those; one that has
//! just come or just been used is spared as long as there is another. So a flood from a few networks
//! evicts itself. A connection with an open stream is never closed here.

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

/// A search for idle connections that found none is not repeated for this long: it visits every
/// connection.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);
/// One search returns at most one connection in this many, and at least [`FOUND_MIN`].
const FOUND_SHARE: usize = 64;
const FOUND_MIN: usize = 16;
/// A connection that came, or was used, more recently than this is evicted after others.
const FRESH: Duration = Duration::from_secs(1);
/// How long no handler may run, and no response make progress, before the port counts as quiet.
const QUIET: Duration = Duration::from_millis(700);
const QUIET_CHECK: Duration = Duration::from_millis(50);
/// How long a new connection waits at most for evicted ones to go, and how often it looks.
const SETTLE_CHECKS: u32 = 50;
const SETTLE_CHECK: Duration = Duration::from_millis(2);

/// The bounds of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Open connections.
    pub max: usize,
    /// Open connections from one network.
    pub per_network: usize,
    /// Connections that may be closing gracefully, beside those, to make room.
    pub closing: usize,
}

/// Why a connection was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The port is full of connections with open streams.
    Full,
    /// The network has its share of connections, all with open streams.
    Network,
    /// The kernel returned an error, for example because no file descriptor was left.
    NotAccepted,
}

/// Why a connection was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The client closed it, or it broke.
    Client,
    /// It did not complete its TLS handshake and HTTP/2 preface in time.
    Preface,
    /// Its client does not speak the protocol of the port.
    Protocol,
    /// It had no open stream for too long.
    Idle,
    /// It reached the maximum age.
    Age,
    /// It was idle, and made room for a new connection.
    Evicted,
    /// The server stops.
    Stop,
}

impl Refused {
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

/// The part of an address that one user of the network is assumed to control: an IPv4 address, or
/// an IPv6 /64. An IPv4-mapped IPv6 address is its IPv4 address.
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
    refused: [AtomicU64; Refused::ALL.len()],
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

    /// Admits a connection from this address, and closes an idle one where that is needed.
    ///
    /// # Errors
    /// When there is no room, and no idle connection to close.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admitted, Refused> {
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

    /// Counts a connection that was refused.
    pub fn refuse(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    /// Returns the number of open connections, those that are closing included.
    pub fn open(&self) -> usize {
        let table = self.table();
        table.open + table.closing.len()
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Returns the refused connections by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Refused::ALL.iter().zip(&self.refused);
        counts.map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Returns the closed connections by reason.
    pub fn closes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Closed::ALL.iter().zip(&self.closed);
        counts.map(|((_, name), count)| (*name, count.load(Relaxed)))
    }

    /// Waits for a moment while too many evicted connections are still open, so that a burst of new
    /// ones is not refused before their threads have had a turn.
    pub async fn settle(&self) {
        for _ in 0..SETTLE_CHECKS {
            if self.table().closing.len() < 2 * self.bounds.closing {
                return;
            }
            time::sleep(SETTLE_CHECK).await;
        }
    }

    /// Waits until no handler has run, and no response has made progress, for a while: what is
    /// open then waits for its client only.
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
        // A panic cannot leave it half changed: nothing that is called under the lock panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open connections by network.
#[derive(Default)]
struct Table {
    /// The id of the newest connection.
    next: u64,
    /// Open connections, without those that are closing to make room.
    open: usize,
    networks: HashMap<Network, Group>,
    idle: Idle,
    /// Connections that were evicted and are still open, in the order of their eviction.
    closing: VecDeque<Arc<State>>,
    /// Responses' frames on connections that are gone.
    progress: u64,
}

/// The open connections of one network.
#[derive(Default)]
struct Group {
    connections: HashMap<u64, Arc<State>>,
    idle: Idle,
}

impl Table {
    /// Makes room for a connection of this network, if there is none.
    fn make_room(&mut self, network: Network, bounds: Bounds) -> Result<(), Refused> {
        let group = self.networks.get_mut(&network);
        let (idle, refused) = match group {
            Some(group) if group.connections.len() >= bounds.per_network => {
                let Group { connections, idle } = group;
                let all = connections.values().map(|state| (0, state));
                (idle.first(all), Refused::Network)
            }
            _ if self.open >= bounds.max => {
                let groups = self.networks.values();
                let all = groups.flat_map(|Group { connections, .. }| {
                    let size = connections.len();
                    connections.values().map(move |state| (size, state))
                });
                (self.idle.first(all), Refused::Full)
            }
            _ => return Ok(()),
        };
        // Those that were evicted before have not gone yet, although the oldest were cut.
        if self.closing.len() >= 2 * bounds.closing {
            return Err(refused);
        }
        let idle = idle.ok_or(refused)?;
        self.remove(&idle);
        idle.evicted.store(true, Relaxed);
        idle.evict.notify_one();
        self.closing.push_back(idle);
        if self.closing.len() > bounds.closing {
            // Asked a second time, a connection is cut.
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

    /// Returns how many handlers run, and a number that grows with each frame of a response.
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

/// Idle connections in the order of their eviction, as the last search found them.
#[derive(Default)]
struct Idle {
    found: VecDeque<Arc<State>>,
    search_after: Option<Instant>,
}

impl Idle {
    /// Returns the idle connection to evict first. `all` has each with the size of its network.
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

/// The state of one connection, which its own thread writes and others read.
struct State {
    id: u64,
    network: Network,
    opened: Instant,
    /// Whether the client has completed the preface.
    greeted: AtomicBool,
    /// Whether it makes room for another one.
    evicted: AtomicBool,
    /// Whether it is over.
    over: AtomicBool,
    evict: Notify,
    /// Open streams.
    streams: AtomicUsize,
    /// Those whose handler still runs.
    handlers: AtomicUsize,
    /// Frames of responses so far.
    progress: AtomicU64,
    /// When the last stream ended or the preface was completed, in milliseconds after `opened`.
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

    /// Returns since when the connection has been idle; `None` if it is not, or may not be evicted.
    fn idle_since(&self) -> Option<Instant> {
        let taken = self.over.load(Relaxed) || self.evicted.load(Relaxed);
        if taken || self.streams.load(Relaxed) > 0 {
            return None;
        }
        Some(self.opened + Duration::from_millis(self.idle_since.load(Relaxed)))
    }

    /// Returns how much an idle connection has been used: not at all, for a preface, or for a response.
    fn value(&self) -> u8 {
        u8::from(self.greeted.load(Relaxed)) + u8::from(self.progress.load(Relaxed) > 0)
    }

    fn note_idle(&self) {
        let elapsed = self.opened.elapsed().as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        self.idle_since.store(elapsed, Relaxed);
    }
}

/// A place among the open connections, until it is dropped.
pub struct Admitted {
    admission: Arc<Admission>,
    state: Arc<State>,
    closed: Closed,
}

impl Admitted {
    /// Notes that the client has completed its preface.
    pub fn greeted(&self) {
        self.state.note_idle();
        self.state.greeted.store(true, Relaxed);
    }

    /// Notes why the connection is closed; without it, the client closed it.
    pub fn closed(&mut self, why: Closed) {
        self.closed = why;
    }

    /// Waits until this connection is to make room for another one: to end gracefully the first
    /// time, and at once the second time.
    pub async fn evicted(&self) {
        self.state.evict.notified().await;
    }

    /// Returns the number of open streams.
    pub fn streams(&self) -> usize {
        self.state.streams.load(Relaxed)
    }

    /// Returns for how long the connection has had no open stream; `None` while it has one.
    pub fn idle(&self) -> Option<Duration> {
        if self.streams() > 0 {
            return None;
        }
        let since = Duration::from_millis(self.state.idle_since.load(Relaxed));
        Some(self.state.opened.elapsed().saturating_sub(since))
    }

    /// Returns what counts the streams of this connection.
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
    /// Counts a stream that opens now, whose handler runs.
    pub fn open(&self) -> OpenStream {
        self.0.streams.fetch_add(1, Relaxed);
        self.0.handlers.fetch_add(1, Relaxed);
        OpenStream {
            state: Arc::clone(&self.0),
            handled: false,
        }
    }
}

/// An open stream, until it is dropped.
pub struct OpenStream {
    state: Arc<State>,
    handled: bool,
}

impl OpenStream {
    /// Notes that the handler has returned its response.
    pub fn handled(&mut self) {
        if !self.handled {
            self.handled = true;
            self.state.handlers.fetch_sub(1, Relaxed);
        }
    }

    /// Notes that a frame of the response was taken to be sent.
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
