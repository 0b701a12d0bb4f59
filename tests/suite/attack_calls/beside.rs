//! The others, beside an attack: what they wait for, and the memory of the server.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gatekey::api::proto::{Key, Reason};
use tokio::time;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::raw::Attack;
use crate::support::client::key_target;
use crate::support::{Client, Gatekey};

/// The memory limit of the chart's default pod, in KiB.
const RSS_MAX: u64 = 472 * 1024;
/// The bound for health and for an admin's RevokeKey beside an attack: twice what is promised, for a
/// machine that is busy with other things.
const SOON: Duration = Duration::from_secs(2);
/// The factor by which an attack may raise the p99 of Validate.
const P99_FACTOR: u32 = 3;
/// The factor where that is too little, because all took long before the attack.
const SLOW_FACTOR: u32 = 5;
/// A p99 below which a factor says nothing on a machine that is busy with other things.
const P99_FLOOR: Duration = Duration::from_millis(300);
/// The time after an attack until all must be as before.
const RECOVERY: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);
const WARM_UP: Duration = Duration::from_secs(1);

/// Returns how long each attack lasts.
pub fn seconds() -> u64 {
    let seconds = std::env::var("GATEKEY_ATTACK_SECONDS").ok();
    seconds.map_or(5, |seconds| seconds.parse().expect("a number of seconds"))
}

/// Returns the resident memory of a server's process in KiB.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|size| size.trim().strip_suffix(" kB"));
    resident.and_then(|size| size.parse().ok()).expect("a size")
}

/// A server with what the others need for their calls.
pub struct Beside {
    pub server: Gatekey,
    pub admin: Client,
    good: String,
    /// A key that is revoked again and again.
    victim: Key,
}

/// The times of some calls. A call that failed took for ever.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn p99(&mut self) -> Duration {
        self.0.sort_unstable();
        self.0[(self.0.len() * 99 / 100).min(self.0.len() - 1)]
    }

    fn max(&self) -> Duration {
        self.0.iter().copied().max().unwrap_or_default()
    }
}

/// All that was measured beside an attack.
struct Seen {
    validates: Times,
    healths: Times,
    revokes: Times,
    failures: Vec<String>,
}

impl Beside {
    /// Starts a server, with a good key and keys to be revoked.
    pub async fn start() -> Self {
        let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
        let admin = server.admin().await;
        let good = admin.issue("default", &["jobs:read"]).await.1;
        let victim = admin.issue("default", &["jobs:read"]).await.0;
        Self {
            server,
            admin,
            good,
            victim,
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Measures before, beside and after an attack, prints the figures and checks the bounds.
    pub async fn withstand(&mut self, name: &str, attack: Attack) {
        let pid = self.server.pid();
        let mut before = self.measure(WARM_UP).await;
        let (rss_before, p99_before) = (resident(pid), before.validates.p99());

        let length = Duration::from_secs(seconds());
        let (peak, over) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
        let sampler = sample(pid, Arc::clone(&over));
        let attackers = aside(attack, Arc::clone(&over));
        let mut seen = self.measure(length).await;
        over.store(true, Ordering::Relaxed);
        attackers.join().expect("the attack does not panic");
        peak.store(sampler.join().expect("it samples"), Ordering::Relaxed);
        let peak = peak.into_inner();

        let bound = (p99_before * P99_FACTOR).max(P99_FLOOR);
        let (mut p99_after, recovering) = (Duration::MAX, Instant::now());
        while p99_after > bound && recovering.elapsed() < RECOVERY {
            p99_after = self.measure(WARM_UP).await.validates.p99();
        }
        println!(
            "{name}: RSS {} → {} → {} MiB; Validate p99 {:.1?} before, {:.1?} beside, {:.1?} after {:.1?}; \
             health ≤ {:.1?}, RevokeKey ≤ {:.1?}; {} s, {} calls failed {:?}",
            rss_before / 1024,
            peak / 1024,
            resident(pid) / 1024,
            p99_before,
            seen.validates.p99(),
            p99_after,
            recovering.elapsed(),
            seen.healths.max(),
            seen.revokes.max(),
            seconds(),
            seen.failures.len(),
            seen.failures.first(),
        );
        assert!(peak <= RSS_MAX, "{name}: {peak} KiB");
        assert!(seen.failures.is_empty(), "{name}: {:?}", seen.failures);
        let soon = |before: &Times| SOON.max(before.max() * SLOW_FACTOR);
        assert!(
            seen.healths.max() <= soon(&before.healths),
            "{name}: health"
        );
        assert!(
            seen.revokes.max() <= soon(&before.revokes),
            "{name}: RevokeKey"
        );
        assert!(seen.validates.p99() <= bound, "{name}: Validate");
        assert!(p99_after <= bound, "{name}: Validate after the attack");
        assert!(!self.server.logs().contains("panic"), "{name}");
    }

    /// Calls for so long, in a thread of its own, so that the attackers' work delays no call.
    async fn measure(&self, length: Duration) -> Seen {
        let (addr, good, victim) = (self.addr(), self.good.clone(), self.victim.clone());
        let token = self.server.admin_token();
        let measuring = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().expect("a runtime");
            let until = Instant::now() + length;
            runtime.block_on(call(addr, token, good, victim, until))
        });
        measuring.await.expect("it does not panic")
    }
}

/// Attacks in a thread of the lowest priority until it is over: the attackers' own work is not what
/// is measured.
fn aside(attack: Attack, over: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        rustix::process::setpriority_process(None, 19).expect("a thread may be nicer");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let attacking = tokio::spawn(attack.run());
            while !over.load(Ordering::Relaxed) {
                time::sleep(Duration::from_millis(10)).await;
            }
            attacking.abort();
        });
    })
}

async fn call(addr: SocketAddr, token: String, good: String, victim: Key, until: Instant) -> Seen {
    let client = Client::lazy(addr, &token);
    let mut failures = Vec::new();
    let (validating, checking, revoking) = tokio::join!(
        validate(&client, &good, until),
        check(&client, until),
        revoke(&client, &victim, until),
    );
    let mut times = |(times, failed): (Times, Vec<String>)| {
        failures.extend(failed);
        times
    };
    Seen {
        validates: times(validating),
        healths: times(checking),
        revokes: times(revoking),
        failures,
    }
}

async fn validate(client: &Client, good: &str, until: Instant) -> (Times, Vec<String>) {
    let (mut times, mut failed) = (Times::default(), Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        match client.try_validate(crate::support::client::ask(good)).await {
            Ok(answer) => assert_eq!(answer.reason(), Reason::Allowed),
            Err(status) => failed.push(format!("Validate: {status:?}")),
        }
        times.0.push(began.elapsed());
        time::sleep(PAUSE).await;
    }
    (times, failed)
}

async fn check(client: &Client, until: Instant) -> (Times, Vec<String>) {
    let (mut times, mut failed) = (Times::default(), Vec::new());
    let mut health = HealthClient::new(client.channel.clone());
    while Instant::now() < until {
        let began = Instant::now();
        if let Err(status) = health.check(HealthCheckRequest::default()).await {
            failed.push(format!("health: {status:?}"));
        }
        times.0.push(began.elapsed());
        time::sleep(Duration::from_millis(100)).await;
    }
    (times, failed)
}

async fn revoke(client: &Client, victim: &Key, until: Instant) -> (Times, Vec<String>) {
    let (mut times, mut failed) = (Times::default(), Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        let request = gatekey::api::proto::RevokeKeyRequest {
            tenant_id: victim.tenant_id.clone(),
            target: key_target(victim.key_id.clone()),
            reason: String::new(),
        };
        if let Err(status) = client.keys.clone().revoke_key(request).await {
            failed.push(format!("RevokeKey: {status:?}"));
        }
        times.0.push(began.elapsed());
        time::sleep(Duration::from_millis(200)).await;
    }
    (times, failed)
}

/// Looks at the resident memory until it is over, and returns the highest.
fn sample(pid: u32, over: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut peak = 0;
        while !over.load(Ordering::Relaxed) {
            peak = peak.max(resident(pid));
            thread::sleep(Duration::from_millis(20));
        }
        peak
    })
}
