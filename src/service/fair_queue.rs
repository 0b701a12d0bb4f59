//! A concurrency limit with bounded, fair queues.
//!
//! Requests wait in lanes, and in each lane by requester. A free permit goes to the next lane of a
//! fixed schedule that has waiting requests, and within that lane to the requesters in turn.
//! Therefore a requester with many requests delays its own requests. A lane with many requests
//! delays another lane no longer than the schedule defines. A request that is dropped while it
//! waits leaves the queue at once.

use std::{
    array,
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use thiserror::Error;
use tokio::sync::oneshot;

/// The rejection of a request because its requester or its lane has too many waiting requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many requests are waiting already")]
pub struct QueueFull;

/// The bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Maximum number of concurrent permits, over all lanes.
    pub running: usize,
    /// Maximum number of waiting requests per lane.
    pub waiting: usize,
    /// Maximum number of waiting requests per requester and lane.
    pub waiting_each: usize,
}

/// The load of one lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    pub running: usize,
    pub waiting: usize,
    /// Requests that were rejected since the start.
    pub refused: u64,
}

/// A fair queue with lanes `0..LANES`, whose requesters are identified by `K`.
pub struct FairQueue<K: Requester, const LANES: usize>(Arc<Shared<K, LANES>>);

/// An identifier shared by all requests of one requester.
pub trait Requester: Clone + Eq + Hash + Send + 'static {}

impl<K: Clone + Eq + Hash + Send + 'static> Requester for K {}

/// Permission to run, released when dropped. It can be sent to another thread.
pub struct Permit<K: Requester, const LANES: usize> {
    queue: Arc<Shared<K, LANES>>,
    lane: usize,
}

struct Shared<K: Requester, const LANES: usize> {
    bounds: Bounds,
    /// The order in which lanes get free permits.
    schedule: &'static [usize],
    state: Mutex<State<K, LANES>>,
}

struct State<K: Requester, const LANES: usize> {
    free: usize,
    lanes: [Lane<K, LANES>; LANES],
    /// The position in the schedule where the next choice begins.
    next: usize,
    tickets: u64,
}

struct Lane<K: Requester, const LANES: usize> {
    waiting: HashMap<K, VecDeque<Ticket<K, LANES>>>,
    /// The requesters that have waiting requests; the first one is next.
    turns: VecDeque<K>,
    length: usize,
    running: usize,
    refused: u64,
}

/// A waiting request.
struct Ticket<K: Requester, const LANES: usize> {
    number: u64,
    grant: oneshot::Sender<Permit<K, LANES>>,
}

/// Removes a request from the queue when dropped.
struct Waiting<'a, K: Requester, const LANES: usize> {
    queue: &'a Shared<K, LANES>,
    lane: usize,
    requester: K,
    number: u64,
    granted: oneshot::Receiver<Permit<K, LANES>>,
}

impl<K: Requester, const LANES: usize> FairQueue<K, LANES> {
    /// Returns an empty queue. The `schedule` is repeated; it must name every lane.
    #[must_use]
    pub fn new(bounds: Bounds, schedule: &'static [usize]) -> Self {
        Self(Arc::new(Shared {
            bounds,
            schedule,
            state: Mutex::new(State {
                free: bounds.running,
                lanes: array::from_fn(|_| Lane::default()),
                next: 0,
                tickets: 0,
            }),
        }))
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// Returns [`QueueFull`] at once if too many requests wait. Returns it later if another
    /// requester with fewer requests needs the place.
    pub async fn enter(&self, lane: usize, requester: K) -> Result<Permit<K, LANES>, QueueFull> {
        let mut waiting = {
            let mut state = self.0.lock();
            if state.free > 0 {
                // No request waits, because a released permit goes to the next waiting request.
                state.free -= 1;
                state.lanes[lane].running += 1;
                return Ok(self.0.permit(lane));
            }
            state.lanes[lane].make_room(&requester, &self.0.bounds)?;
            state.tickets += 1;
            let number = state.tickets;
            let (grant, granted) = oneshot::channel();
            state.lanes[lane].push(requester.clone(), Ticket { number, grant });
            Waiting {
                queue: &*self.0,
                lane,
                requester,
                number,
                granted,
            }
        };
        (&mut waiting.granted).await.map_err(|_| QueueFull)
    }

    /// Returns the load of each lane.
    #[must_use]
    pub fn load(&self) -> [Load; LANES] {
        let state = self.0.lock();
        array::from_fn(|lane| Load {
            running: state.lanes[lane].running,
            waiting: state.lanes[lane].length,
            refused: state.lanes[lane].refused,
        })
    }
}

impl<K: Requester, const LANES: usize> Shared<K, LANES> {
    fn lock(&self) -> MutexGuard<'_, State<K, LANES>> {
        // A poisoned lock is usable, because no holder leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permit(self: &Arc<Self>, lane: usize) -> Permit<K, LANES> {
        Permit {
            queue: Arc::clone(self),
            lane,
        }
    }
}

impl<K: Requester, const LANES: usize> Drop for Permit<K, LANES> {
    fn drop(&mut self) {
        let next = {
            let mut state = self.queue.lock();
            state.lanes[self.lane].running -= 1;
            let next = state.pop(self.queue.schedule);
            match &next {
                Some((lane, _)) => state.lanes[*lane].running += 1,
                None => state.free += 1,
            }
            next
        };
        if let Some((lane, grant)) = next {
            // If the request was dropped meanwhile, the permit is dropped and passes to the next
            // one.
            let _ = grant.send(self.queue.permit(lane));
        }
    }
}

impl<K: Requester, const LANES: usize> Drop for Waiting<'_, K, LANES> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        let removed = state.lanes[self.lane].remove(&self.requester, self.number);
        drop(state);
        // `self` owns the receiver: a permit that was sent to it is released after the lock.
        drop(removed);
    }
}

type Grant<K, const LANES: usize> = oneshot::Sender<Permit<K, LANES>>;

impl<K: Requester, const LANES: usize> State<K, LANES> {
    /// Removes the request that gets the next permit, and returns it with its lane.
    fn pop(&mut self, schedule: &[usize]) -> Option<(usize, Grant<K, LANES>)> {
        for step in 0..schedule.len() {
            let place = (self.next + step) % schedule.len();
            if let Some(grant) = self.lanes[schedule[place]].pop() {
                self.next = (place + 1) % schedule.len();
                return Some((schedule[place], grant));
            }
        }
        None
    }
}

impl<K: Requester, const LANES: usize> Default for Lane<K, LANES> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            length: 0,
            running: 0,
            refused: 0,
        }
    }
}

impl<K: Requester, const LANES: usize> Lane<K, LANES> {
    /// Ensures that one more request of this requester can wait. In a full lane the requester with
    /// the most requests loses its newest one to a requester that has fewer.
    fn make_room(&mut self, requester: &K, bounds: &Bounds) -> Result<(), QueueFull> {
        let own = self.waiting.get(requester).map_or(0, VecDeque::len);
        if own < bounds.waiting_each {
            if self.length < bounds.waiting {
                return Ok(());
            }
            let longest = self.waiting.values_mut().max_by_key(|queue| queue.len());
            if let Some(queue) = longest.filter(|queue| queue.len() > own + 1) {
                // This drops its sender, which rejects the request.
                queue.pop_back();
                self.length -= 1;
                self.refused += 1;
                return Ok(());
            }
        }
        self.refused += 1;
        Err(QueueFull)
    }

    fn push(&mut self, requester: K, ticket: Ticket<K, LANES>) {
        let queue = self.waiting.entry(requester.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(requester);
        }
        queue.push_back(ticket);
        self.length += 1;
    }

    fn pop(&mut self) -> Option<Grant<K, LANES>> {
        let requester = self.turns.pop_front()?;
        let queue = self.waiting.get_mut(&requester)?;
        let ticket = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&requester);
        } else {
            self.turns.push_back(requester);
        }
        self.length -= 1;
        Some(ticket.grant)
    }

    fn remove(&mut self, requester: &K, number: u64) -> Option<Ticket<K, LANES>> {
        let queue = self.waiting.get_mut(requester)?;
        let place = queue.iter().position(|ticket| ticket.number == number)?;
        let ticket = queue.remove(place);
        self.length -= 1;
        if queue.is_empty() {
            self.waiting.remove(requester);
            self.turns.retain(|other| other != requester);
        }
        ticket
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    const ONE_LANE: &[usize] = &[0];
    const BOUNDS: Bounds = Bounds {
        running: 1,
        waiting: 4,
        waiting_each: 3,
    };

    type Queue<const LANES: usize> = FairQueue<&'static str, LANES>;
    type Entering<'a, const LANES: usize> =
        Pin<Box<dyn Future<Output = Result<Permit<&'static str, LANES>, QueueFull>> + 'a>>;

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Returns a request that waits in the queue.
    fn wait<'a, const LANES: usize>(
        queue: &'a Queue<LANES>,
        lane: usize,
        requester: &'static str,
    ) -> Entering<'a, LANES> {
        let mut entering: Entering<'a, LANES> = Box::pin(queue.enter(lane, requester));
        assert!(poll(&mut entering).is_pending());
        entering
    }

    /// Releases the permit, and returns the index of the request that gets it next.
    fn next<const LANES: usize>(
        permit: &mut Option<Permit<&'static str, LANES>>,
        waiting: &mut [Option<Entering<'_, LANES>>],
    ) -> usize {
        permit.take();
        for (place, slot) in waiting.iter_mut().enumerate() {
            if let Some(entering) = slot
                && let Poll::Ready(granted) = poll(entering)
            {
                *permit = granted.ok();
                *slot = None;
                return place;
            }
        }
        panic!("nobody has the permit");
    }

    #[tokio::test]
    async fn requesters_take_turns_however_many_requests_each_has() {
        let queue = Queue::<1>::new(BOUNDS, ONE_LANE);
        let mut permit = queue.enter(0, "first").await.ok();
        let mut waiting: Vec<_> = ["many", "many", "many", "one"]
            .map(|requester| Some(wait(&queue, 0, requester)))
            .into();
        let order: Vec<_> = (0..4).map(|_| next(&mut permit, &mut waiting)).collect();
        assert_eq!(order, [0, 3, 1, 2]);
    }

    #[tokio::test]
    async fn lanes_get_permits_as_the_schedule_says() {
        let queue = Queue::<2>::new(BOUNDS, &[0, 0, 1]);
        let mut permit = queue.enter(1, "first").await.ok();
        let lanes = [1, 1, 0, 0, 0];
        let mut waiting: Vec<_> = lanes.map(|lane| Some(wait(&queue, lane, "a"))).into();
        let order: Vec<_> = (0..5)
            .map(|_| lanes[next(&mut permit, &mut waiting)])
            .collect();
        assert_eq!(order, [0, 0, 1, 0, 1]);
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_and_a_full_lane_is_shared() {
        let queue = Queue::<1>::new(BOUNDS, ONE_LANE);
        let _running = queue.enter(0, "first").await;
        let _waiting: Vec<_> = (0..2).map(|_| wait(&queue, 0, "a")).collect();
        let mut third = wait(&queue, 0, "a");
        // The requester has too many waiting requests.
        assert_eq!(queue.enter(0, "a").await.err(), Some(QueueFull));
        let _other = wait(&queue, 0, "b");
        // The lane is full: the requester with the most requests loses its newest one.
        let _its_next = wait(&queue, 0, "b");
        assert!(matches!(poll(&mut third), Poll::Ready(Err(QueueFull))));
        assert_eq!(queue.enter(0, "b").await.err(), Some(QueueFull));
        let load = Load {
            running: 1,
            waiting: 4,
            refused: 3,
        };
        assert_eq!(queue.load(), [load]);
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_leaves_the_queue_and_loses_no_permit() {
        let queue = Queue::<1>::new(BOUNDS, ONE_LANE);
        let permit = queue.enter(0, "first").await;
        let (dropped, mut other) = (wait(&queue, 0, "a"), wait(&queue, 0, "b"));
        drop(dropped);
        assert_eq!(queue.load()[0].waiting, 1);
        let late = wait(&queue, 0, "a");
        drop(permit);
        // The request gets the permit and passes it on without using it.
        let granted = poll(&mut other);
        assert!(matches!(granted, Poll::Ready(Ok(_))));
        drop(granted);
        drop(late);
        assert_eq!(queue.load()[0].running, 0);
        assert!(queue.enter(0, "c").await.is_ok());
    }
}
