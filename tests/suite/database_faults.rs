//! Faults of the database that are not outages: it answers, and what it answers or does is wrong.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use gatekey::api::proto::Owner;
use tonic::Status;

use crate::support::{Client, Gatekey, client::whole_owner, prometheus};

mod clock;
mod defaults;
mod disk;
mod opening;
mod read_only;
mod rights;
mod rows;
mod standby;

/// How long it may take until all is well again, once the fault is gone.
const RECOVERY: Duration = Duration::from_secs(5);

/// How long it takes until `attempt` succeeds: at most [`RECOVERY`].
async fn recovered<F>(mut attempt: impl FnMut() -> F) -> Duration
where
    F: Future<Output = bool>,
{
    let began = Instant::now();
    while !attempt().await {
        assert!(began.elapsed() < RECOVERY, "no recovery in {RECOVERY:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Makes a change that is quick and writes little.
async fn change(admin: &Client, owner: &str) -> Result<(), Status> {
    let owner = Owner {
        tenant_id: "default".to_owned(),
        owner_id: owner.to_owned(),
        ..Owner::default()
    };
    let set = admin.owners.clone().update_owner(whole_owner(owner)).await;
    set.map(drop)
}

/// Whether the metric for alerts says that changes can be written.
fn writable(server: &Gatekey) -> bool {
    let (_, page) = prometheus::get(server.metrics(), "/metrics").expect("a page");
    let mut lines = page.lines();
    let line = lines.find_map(|line| line.strip_prefix("gatekey_database_writable "));
    match line {
        Some("1") => true,
        Some("0") => false,
        other => panic!("no gauge: {other:?}"),
    }
}

/// How often a server has logged these words.
fn logged(server: &Gatekey, words: &str) -> usize {
    server.logs().matches(words).count()
}
