//! All that goes wrong, in an order and with durations that follow from a seed.

use std::{sync::Arc, time::Duration};

use rand::{
    RngExt as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use rustix::process::Signal;
use tokio::{sync::Mutex, time::sleep};

use super::{
    fleet::{LEASE, Slot},
    traffic::Traffic,
};
use crate::support::{postgres::Stop, proxy::Network};

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A replica's connections are closed, and it gets no others.
    Cut,
    /// What it sends and gets is late.
    Slow,
    /// Nothing of it arrives, or nothing arrives at it, or neither, until it all does.
    Stalled { to_store: bool, to_replica: bool },
    /// Its connections carry nothing any more, and never end.
    Forgotten,
    /// It is killed, and another takes its place.
    Killed,
    /// It stands still for so many tenths of a lease.
    Paused { tenths: u32 },
    /// It is stopped in order, and another takes its place.
    Replaced,
    /// Another joins, amid what is going on, and leaves in order.
    Joined,
    /// Nobody hears of changes: there is polling alone.
    Deaf,
    /// The store is stopped and started.
    Restarted(Stop),
}

impl Fault {
    pub const ALL: [Fault; 15] = [
        Fault::Cut,
        Fault::Slow,
        Fault::Stalled {
            to_store: true,
            to_replica: false,
        },
        Fault::Stalled {
            to_store: false,
            to_replica: true,
        },
        Fault::Stalled {
            to_store: true,
            to_replica: true,
        },
        Fault::Forgotten,
        Fault::Killed,
        Fault::Paused { tenths: 5 },
        Fault::Paused { tenths: 20 },
        Fault::Paused { tenths: 50 },
        Fault::Replaced,
        Fault::Joined,
        Fault::Deaf,
        Fault::Restarted(Stop::Fast),
        Fault::Restarted(Stop::Immediate),
    ];
}

/// Does one thing after the other, all of them before any again, until all is done. The last place is for those that
/// join.
pub async fn go_wrong(traffic: Arc<Traffic>, store: Arc<Mutex<()>>, mut rng: StdRng) {
    let mut order = Vec::new();
    while !traffic.is_done() {
        sleep(LEASE.mul_f64(rng.random_range(0.05..0.8))).await;
        if order.is_empty() {
            order = Fault::ALL.to_vec();
            order.shuffle(&mut rng);
        }
        let fault = order.pop().expect("it was filled");
        one(&traffic, fault, &store, &mut rng).await;
        traffic.history().faults.push(fault);
    }
}

async fn one(traffic: &Traffic, fault: Fault, store: &Mutex<()>, rng: &mut StdRng) {
    let fleet = &traffic.fleet;
    let (guest, residents) = fleet.slots.split_last().expect("there are places");
    let slot: &Slot = residents.choose(rng).expect("there are places");
    let lasts = LEASE.mul_f64(rng.random_range(0.2..2.5));
    let gap = LEASE.mul_f64(rng.random_range(0.0..1.5));
    match fault {
        Fault::Restarted(how) => {
            // One after the other: a store that is stopped cannot be.
            let _only = store.lock().await;
            fleet.restart_store(how, gap).await;
        }
        Fault::Deaf => {
            let until = fleet.now() + lasts;
            while fleet.now() < until {
                fleet.deafen().await;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Fault::Joined => {
            let mut place = guest.process.lock().await;
            guest.start_in(&mut place).await;
            sleep(lasts).await;
            guest.leave(&mut place).stop().await;
        }
        Fault::Cut | Fault::Slow | Fault::Stalled { .. } | Fault::Forgotten => {
            let _place = slot.process.lock().await;
            match fault {
                Fault::Cut => fleet.cut(slot, true),
                Fault::Slow => {
                    let by = Duration::from_millis(rng.random_range(10..500));
                    slot.proxy.set(Network::Slow(by));
                }
                Fault::Stalled {
                    to_store,
                    to_replica,
                } => slot.proxy.set(Network::Stalled {
                    to_store,
                    to_replica,
                }),
                _ => slot.proxy.forget(),
            }
            sleep(lasts).await;
            fleet.cut(slot, false);
        }
        Fault::Paused { tenths } => {
            let place = slot.process.lock().await;
            let process = place.as_ref().expect("a resident is there");
            process.signal(Signal::STOP);
            sleep(LEASE * tenths / 10).await;
            process.signal(Signal::CONT);
        }
        Fault::Killed | Fault::Replaced => {
            let mut place = slot.process.lock().await;
            let process = slot.leave(&mut place);
            if fault == Fault::Killed {
                process.kill9();
                sleep(gap).await;
            } else {
                process.stop().await;
            }
            slot.start_in(&mut place).await;
        }
    }
}
